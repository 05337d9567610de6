"""Commands that keep a store in order: check, compact."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from stitchgrid.cli.options import STORE
from stitchgrid.cli.saying import say, warn_of_damage

if TYPE_CHECKING:
    from stitchgrid.store import Repair, Report


@click.command()
@click.option("--repair", is_flag=True, help="Move damaged files to set-aside/; resume then computes what they held.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@STORE
@click.pass_context
def check(ctx: click.Context, repair: bool, form: str, store: str) -> None:
    """Verify every file of a store: parts, snapshots, artefacts, sweeps, journals.

    Exits with 1 when something is damaged, unless all of it could be set aside. Files that do not belong to the store
    are listed and harmless.

    \b
    Example:
      stitchgrid check
      stitchgrid check --repair && stitchgrid resume quickstart
    """
    from stitchgrid.store import Store

    opened = Store.open(store)
    report = opened.check()
    repaired = opened.set_aside(report) if repair and report.damage else None
    say(_as_json(report, repaired) if form == "json" else _as_text(report, repaired))
    if report.damage and (repaired is None or repaired.stuck):
        ctx.exit(1)


def _as_json(report: "Report", repaired: "Repair | None") -> str:
    found = {"files": report.num_files, "findings": [asdict(one) for one in report.findings]}
    return json.dumps(found | ({} if repaired is None else asdict(repaired)), indent=2)


def _as_text(report: "Report", repaired: "Repair | None") -> str:
    lines = []
    for one in report.findings:
        lines += [
            f"{'DAMAGED' if one.is_damage else 'harmless'}  {one.file}",
            f"    {one.problem}",
            f"    {one.advice}",
        ]
    if repaired is not None:
        lines += [f"set aside as {name}" for name in repaired.moved]
        lines += [f"taken back: {name}" for name in repaired.taken_back]
        lines += [f"could not set aside: {reason}" for reason in repaired.stuck]
    elif report.damage:
        lines.append("Set damaged files aside, and take others back, with --repair; until then readers leave them out.")
    num = len(report.damage)
    lines.append(f"{report.num_files} files verified: {f'{num} damaged' if num else 'all sound'}")
    return "\n".join(lines)


@click.command()
@STORE
def compact(store: str) -> None:
    """Merge small files of a store into a few sorted ones; answers stay the same and come sooner.

    Safe while launches run and readers read, and when it is interrupted.

    \b
    Example:
      stitchgrid compact --store grid
    """
    from stitchgrid.store import Store

    done = Store.open(store).compact()
    warn_of_damage(done.damaged)
    if done.is_published:
        say(f"merged {done.num_parts} parts; {done.num_rows} rows in {done.num_files} files now")
    else:
        say("another compaction was faster" if done.num_parts else "nothing to merge")
