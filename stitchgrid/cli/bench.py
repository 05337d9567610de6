"""The command bench: engine and textbook procedure, whole commands in turn, or a job at growing sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stitchgrid.cli.complete import complete_jobs
from stitchgrid.cli.files_out import write_file
from stitchgrid.cli.options import STORE
from stitchgrid.cli.output import say, say_begin
from stitchgrid.cli.run import SET, set_options

if TYPE_CHECKING:
    from stitchgrid.bench.against import Rival
    from stitchgrid.bench.growth import Axis
    from stitchgrid.jobfile import Job


@click.command()
@click.argument("jobfile", shell_complete=complete_jobs)
@STORE
@SET
@click.option(
    "--pairs",
    default="9",
    show_default=True,
    metavar="N|all",
    help="Number of layer pairs on which the textbook procedure runs; its time is scaled up to all of them.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads; default: one per CPU.")
@click.option(
    "--against",
    "rival",
    type=click.Choice(["script", "pytorch-cka"]),
    help="Instead, time whole commands that compute the job's CKA: stitchgrid, and a script of hooks or pytorch-cka.",
)
@click.option(
    "--growth",
    "axes",
    multiple=True,
    type=click.Choice(["images", "layers", "networks", "matchers"]),
    help="Instead, launch the job at sizes that double, to see how time, memory and results grow; repeatable.",
)
@click.option("--figure", metavar="FILE", help="Also draw growth as a figure: .svg, .pdf or .png.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench(
    jobfile: str,
    store: str,
    overrides: tuple[str, ...],
    pairs: str,
    threads: int | None,
    rival: "Rival | None",
    axes: "tuple[Axis, ...]",
    figure: str | None,
    as_json: bool,
) -> None:
    """Time a job by the engine and by the textbook procedure, side by side, and compare their values.

    It runs in this process and stores nothing. The overhead is the engine's time divided by the time of the network
    evaluations that no sharing can save, at the speed of the plain networks.

    \b
    Example:
      stitchgrid bench jobs/bench_resnet20.toml --pairs 4
      stitchgrid bench cka.toml --against script
      stitchgrid bench jobs/bench_growth.toml --growth images --growth networks --figure growth.svg
    """
    from stitchgrid.jobfile import load_job

    if pairs != "all" and not (pairs.isdecimal() and int(pairs)):
        raise click.BadParameter(f"wanted a number of layer pairs or 'all', got {pairs!r}.", param_hint="--pairs")
    if rival is not None and threads is not None:
        raise click.UsageError("give --threads without --against: there each command chooses its own threads.")
    if axes and (rival is not None or threads is not None):
        raise click.UsageError("give --growth without --against and --threads: its launches have one thread each.")
    if figure is not None and not axes:
        raise click.UsageError("--figure draws growth; give at least one --growth with it.")
    job = load_job(jobfile, overrides)
    say_begin(job.name)
    from stitchgrid.bench import against_json, against_text, bench_json, bench_text, run_against, run_bench
    from stitchgrid.display import Display

    if axes:
        _show_growth(job, axes, figure, as_json=as_json)
        return
    display = Display()
    if rival is not None:
        measured = run_against(job, [jobfile, *set_options(overrides)], rival, say=display.say)
        say(against_json(measured) if as_json else against_text(measured))
        return
    found = run_bench(
        job,
        store,
        num_pairs=None if pairs == "all" else int(pairs),
        threads=threads,
        say=display.say,
    )
    say(bench_json(found) if as_json else bench_text(found))


def _show_growth(job: "Job", axes: "Sequence[Axis]", figure: str | None, *, as_json: bool) -> None:
    """Measure the growth of a job along some axes, and print it; draw it if a file for the figure is given."""
    from stitchgrid.atlas.figures import FORMATS
    from stitchgrid.bench import growth_json, growth_text, run_growth
    from stitchgrid.display import Display

    format = "" if figure is None else Path(figure).suffix.lower().removeprefix(".")
    if figure is not None and format not in FORMATS:
        raise click.BadParameter(
            f"wanted a file that ends in .pdf, .svg or .png, got {figure!r}.", param_hint="--figure"
        )
    if figure is not None and not (folder := Path(figure).absolute().parent).is_dir():
        raise click.BadParameter(f"there is no folder {folder}; make it first.", param_hint="--figure")
    display = Display()
    found = [run_growth(job, axis, say=display.say) for axis in dict.fromkeys(axes)]
    say(growth_json(found) if as_json else growth_text(found))
    if figure is not None:
        from stitchgrid.atlas.figures.growth import growth_figure

        write_file(Path(figure), growth_figure(found, format))
