"""Commands that keep a store in order: check, compact, merge, remove, gc."""

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from stitchgrid.cli.complete import complete_sweeps
from stitchgrid.cli.options import STORE
from stitchgrid.cli.output import say, warn_of_damage
from stitchgrid.printable import in_one_line, shortened

if TYPE_CHECKING:
    from stitchgrid.store import Collected, Freed, FromStore, Repair, Report


@click.command()
@click.option("--repair", is_flag=True, help="Move damaged files to set-aside/; resume then computes what they held.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@STORE
@click.pass_context
def check(ctx: click.Context, repair: bool, form: str, store: str) -> None:
    """Verify every file of a store: parts, snapshots, artefacts, sweeps, journals.

    Exits with 1 if something is damaged, unless --repair could set all of it aside. Files that do not belong to the
    store are listed as harmless.

    \b
    Example:
      stitchgrid check
      stitchgrid check --repair && stitchgrid resume quickstart
    """
    from stitchgrid.store import Store

    opened = Store.open(store)
    report = opened.check()
    repaired = opened.set_aside(report) if repair and report.is_repairable else None
    say(_as_json(report, repaired) if form == "json" else _as_text(report, repaired))
    if report.unseen or (report.damage and (repaired is None or repaired.stuck)):
        ctx.exit(1)


def _as_json(report: "Report", repaired: "Repair | None") -> str:
    found = {"files": report.num_files, "findings": [asdict(one) for one in report.findings]}
    return json.dumps(found | ({} if repaired is None else asdict(repaired)), indent=2)


def _as_text(report: "Report", repaired: "Repair | None") -> str:
    lines = []
    for one in report.findings:
        lines += [
            f"{'DAMAGED' if one.is_damage else 'NOT SEEN' if one.is_unseen else 'harmless'}  {one.file}",
            f"    {one.problem}",
            f"    {one.advice}",
        ]
    if repaired is not None:
        lines += [f"set aside as {name}" for name in repaired.moved]
        lines += [f"not used: {reason}" for reason in repaired.blocked]
        lines += [f"taken back: {name}" for name in repaired.taken_back]
        lines += [f"could not set aside: {reason}" for reason in repaired.stuck]
    elif report.damage:
        lines.append(
            "--repair sets damaged files aside, and takes sound ones back; until then readers skip damaged files."
        )
    counts = {"damaged": len(report.damage), "not seen": len(report.unseen)}
    told = ", ".join(f"{num} {what}" for what, num in counts.items() if num)
    lines.append(f"{report.num_files} files verified: {told or 'all sound'}")
    return "\n".join(in_one_line(shortened(line)) for line in lines)


@click.command()
@STORE
def compact(store: str) -> None:
    """Merge small files of a store into a few sorted ones: queries return the same rows, faster.

    It is safe while launches run and readers read, and when it is interrupted.

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
        say("another compaction finished first" if done.num_parts else "nothing to merge")


@click.command()
@click.argument("sources", metavar="FROM...", nargs=-1, required=True)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@STORE
@click.pass_context
def merge(ctx: click.Context, sources: tuple[str, ...], form: str, store: str) -> None:
    """Copy the sweeps, results, trained networks and logs of other stores into one; FROM does not change.

    FROM may be compacted, of an older version, overlapping, or in use by a launch: nothing is lost, and nothing appears
    twice. If --store has a sweep of the same name with other cells, the copied one gets a digest after its name. If the
    command is stopped, both stores are sound, and the same command continues. If a cell has another value in FROM, it
    is counted, and the value in --store stays, unless FROM computed it again (--recompute). Exits with 1 if something
    was left out, such as damaged files. A sweep may name code; only 'launch' and 'resume' run it.

    \b
    Example:
      stitchgrid merge laptop/grid s3://bucket/grid --store grid
    """
    from stitchgrid.store import Store

    others = [Store.open(source) for source in sources]
    found = Store.open(store, create=True).merge(others)
    warn_of_damage(found.damaged)
    if form == "json":
        say(json.dumps(asdict(found), indent=2))
    for one in found.stores:
        if form != "json":
            say("\n".join(_merged(one)))
        if one.num_differing:
            say("\n".join(_differing(one)), err=True)
        warn_of_damage(one.damaged, where=one.uri)
        for told in one.left_out:
            say(f"Warning: left out: {one.uri}: {told}", err=True)
    if any(one.damaged or one.left_out or one.num_differing for one in found.stores):
        ctx.exit(1)


def _differing(found: "FromStore") -> list[str]:
    """Return a warning about cells that have different values in two stores."""
    num = f"{found.num_differing} cells have other values there than here, beyond rounding"
    return [f"Warning: left out: {found.uri}: {num}; the values here stay:", *(f"  {o}" for o in found.differences)]


def _merged(found: "FromStore") -> list[str]:
    new = [one.name for one in found.sweeps if one.is_new]
    lines = [
        f"{found.uri}: {found.num_rows} new rows, {found.num_artefacts} new artefacts, {found.num_logs} new logs; "
        f"new sweeps: {', '.join(new) or 'none'}"
    ]
    if found.num_replaced:
        lines.append(f"  {found.num_replaced} cells were computed again there: their new values replace those here")
    for one in found.sweeps:
        if one.name != one.sweep:
            lines.append(f"  {one.sweep} is called {one.name} here: a sweep here has its name and other cells")
        elif one.is_covered:
            lines.append(f"  {one.sweep} does not change here: it has all cells of the sweep there")
    return lines


@click.command()
@click.argument("sweep", shell_complete=complete_sweeps)
@STORE
def remove(sweep: str, store: str) -> None:
    """Remove a sweep's name, plan and logs. Its results stay: other sweeps may share them, and launches find them.

    Refused while a launch works on the sweep. 'stitchgrid gc' then frees what no sweep refers to.

    \b
    Example:
      stitchgrid remove quickstart && stitchgrid gc --dry-run
    """
    from stitchgrid.store import Store

    num = Store.open(store).remove(sweep)
    say(f"removed {sweep}: {num} files; 'stitchgrid gc' frees what no other sweep refers to")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be freed.")
@STORE
def gc(dry_run: bool, store: str) -> None:
    """Delete what no sweep refers to: rows, artefacts, files of earlier snapshots, partial files of stopped writers.

    Old rows of cells that were computed again are deleted, too, and entries of this machine's cache (decoded images,
    weights) that no launch, of any store, has used for 30 days.

    While a launch works on a sweep of the store, rows and artefacts stay. If something unneeded is kept, a line says
    why. It is safe when it is interrupted.

    \b
    Example:
      stitchgrid gc --dry-run
      stitchgrid gc
    """
    from stitchgrid.store import Store

    found = Store.open(store).collect(dry_run=dry_run)
    in_cache, why = _unused(dry_run=dry_run)
    found = replace(found, freed=found.freed + in_cache, num_bytes=found.num_bytes + sum(x.num_bytes for x in in_cache))
    say("\n".join(_collected(found, dry_run=dry_run)))
    for reason in (*found.kept, *why):
        say(f"Kept: {in_one_line(shortened(reason))}", err=True)


def _collected(found: "Collected", *, dry_run: bool) -> list[str]:
    verb = "would free" if dry_run else "freed"
    lines = [f"{verb} {one.num} {one.what}: {one.num_bytes} bytes" for one in found.freed]
    return [*lines, f"{verb} {found.num_bytes} bytes in all" if lines else "nothing to free"]


def _unused(*, dry_run: bool) -> "tuple[tuple[Freed, ...], tuple[str, ...]]":
    """Free unused entries of this machine's cache; return what was freed, and why something was kept."""
    from stitchgrid.cache import default_cache, free, unused
    from stitchgrid.errors import InputError
    from stitchgrid.store import Freed

    try:
        found = unused(default_cache())
        if not dry_run:
            free(found)
    except (InputError, OSError) as problem:
        return (), (f"the cache could not be read: {problem}",)
    freed = Freed(what="entries of the cache, unused for 30 days", num=len(found.entries), num_bytes=found.num_bytes)
    return (freed,) if found.entries else (), ()
