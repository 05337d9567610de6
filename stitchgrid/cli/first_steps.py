"""Commands to begin with: manual, init, doctor."""

import shlex
import sys
from pathlib import Path

import click

from stitchgrid.cli.complete import complete_architectures, complete_jobs, complete_topics
from stitchgrid.cli.options import STORE
from stitchgrid.cli.output import say
from stitchgrid.cli.streams import answering
from stitchgrid.errors import InputError, StitchgridError

WIDEST = 110  # characters of the longest line that is easy to read


@click.command()
@click.argument("topic", required=False, shell_complete=complete_topics)
def manual(topic: str | None) -> None:
    """Show a page of the manual, or list its topics.

    A terminal shows formatted pages; a file or pipe gets Markdown.

    \b
    Example:
      stitchgrid manual
      stitchgrid manual start
      stitchgrid manual job > job.md
    """
    from stitchgrid.manual import overview, page

    if topic is None:
        say("\n".join(overview()))
    elif sys.stdout.isatty():
        with answering():
            click.echo(_laid_out(page(topic)))
    else:
        say(page(topic).rstrip("\n"))


def _laid_out(text: str) -> str:
    """Return Markdown formatted for a terminal."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.width = min(console.width, WIDEST)
    with console.capture() as shown:
        console.print(Markdown(text, hyperlinks=False))
    return shown.get().rstrip("\n")


@click.command()
@click.argument("file", default="job.toml", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--source",
    metavar="ARCHITECTURE",
    shell_complete=complete_architectures,
    help="The first network: torchvision:NAME, FILE.py:function, ...",
)
@click.option(
    "--target",
    metavar="ARCHITECTURE",
    shell_complete=complete_architectures,
    help="The second one, into which layers of the first are stitched.",
)
@click.option("--source-weights", metavar="WEIGHTS", help="A checkpoint, a published name, 'train' or 'random'.")
@click.option("--target-weights", metavar="WEIGHTS", help="The same for the second network.")
@click.option("--images", metavar="PATH|NAME", help="A folder, an archive, arrays, 'digits', 'CIFAR10', ...")
@click.option("--yes", is_flag=True, help="Ask nothing: use the usual weights where none are given.")
def init(
    file: Path,
    source: str | None,
    target: str | None,
    source_weights: str | None,
    target_weights: str | None,
    images: str | None,
    yes: bool,
) -> None:
    """Ask for two networks and images, and write a job FILE that compares them; default: job.toml.

    The usual weights are what torchvision and timm publish, a short training for stitchgrid's own networks, and none
    ('random') for your own code.

    \b
    Example:
      stitchgrid init
      stitchgrid init job.toml --source nets.py:small --source-weights small.pt --target torchvision:resnet18 \\
          --images photos --yes
    """
    from stitchgrid.paths import write_whole

    if file.exists() and (yes or not click.confirm(f"{file} exists already. Overwrite it?", err=True)):
        raise InputError(f"{file} exists already and was not changed; name another file.")
    source, source_weights = _network("first", "source", source, source_weights, yes=yes)
    target, target_weights = _network("second", "target", target, target_weights, yes=yes)
    from stitchgrid.models.registry import check_weights

    for architecture, weights in ((source, source_weights), (target, target_weights)):
        check_weights(architecture, weights, file.absolute().parent)
    images = images or _asked("Images: a folder, an archive, or a known data set such as digits", "images", yes=yes)

    say("Reading the images, and building both networks without their weights ...", err=True)
    from stitchgrid.datasets.found_images import find_images

    found = find_images(images)
    from stitchgrid.driver.draft import Wish, draft

    wishes = Wish(architecture=source, weights=source_weights), Wish(architecture=target, weights=target_weights)
    text = draft(file, *wishes, found, say=lambda line: say(line, err=True))
    try:
        write_whole(file, text.encode())
    except OSError as problem:
        raise InputError(f"cannot write {file}: {problem.strerror}; name another file.") from problem
    named = shlex.quote(str(file))
    say(f"{file} is written. Read it, then:\n  stitchgrid doctor {named}\n  stitchgrid launch {named}")


def _network(
    which: str, option: str, architecture: str | None, weights: str | None, *, yes: bool
) -> tuple[str, str | None]:
    """Return a network's architecture and weights, from options or from the user's answers."""
    was_given = architecture is not None
    architecture = architecture or _asked(
        f"The {which} network: torchvision:NAME, timm:NAME, stitchgrid:NAME or FILE.py:function", option, yes=yes
    )
    if weights is None and not yes and not was_given:
        from stitchgrid.models.registry import usual_weights

        question = "Its weights: a checkpoint, a published name, train or random"
        weights = _answer(question, usual_weights(architecture))
    return architecture, weights


def _asked(question: str, option: str, *, yes: bool) -> str:
    if yes:
        raise click.UsageError(f"--{option} is missing, and with --yes nothing is asked.")
    return _answer(question)


def _answer(question: str, default: str | None = None) -> str:
    try:
        answer: str = click.prompt(question, default=default, err=True)
    except click.Abort as problem:
        raise InputError(
            "no answer came, so nothing was written; give all answers as options, with --yes."
        ) from problem
    return answer


@click.command()
@click.argument("jobfile", required=False, shell_complete=complete_jobs)
@STORE
@click.option(
    "--address",
    metavar="local|auto|HOST:PORT|none",
    help="Where a launch would compute; none: in this process, so Ray is not checked. Default: as a launch decides for "
    "the JOBFILE; without one, local.",
)
@click.pass_context
def doctor(ctx: click.Context, /, jobfile: str | None, store: str, address: str | None) -> None:
    """Check this machine and, with a JOBFILE, its images and networks: one line each, exit code 1 if any fails.

    It decodes images, loads weights, and checks each network on real images as a launch would. It trains and stores
    nothing.

    \b
    Example:
      stitchgrid doctor
      stitchgrid doctor job.toml
    """
    try:
        from stitchgrid.driver.machine_check import examine_machine
    except StitchgridError as problem:  # torchvision does not fit torch: nothing can be imported that checks the rest
        say(f"FAIL  torchvision: {problem}")
        say("This check failed, and no other can be made before it is mended.", err=True)
        ctx.exit(1)
    job = None
    if jobfile is not None:
        from stitchgrid.jobfile import load_job

        job = load_job(jobfile)
    failed = 0
    for finding in examine_machine(store, address or ("local" if job is None else None)):
        say(str(finding))
        failed += finding.state == "FAIL"
    if job is not None:
        from stitchgrid.driver.job_check import examine_job

        for finding in examine_job(job, store, address):
            say(str(finding))
            failed += finding.state == "FAIL"
    if failed:
        say(f"{failed} of these checks failed; each line says what to do.", err=True)
    ctx.exit(1 if failed else 0)
