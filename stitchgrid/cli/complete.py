"""What a shell is offered when Tab is pressed; whatever goes wrong, it is offered nothing, and says nothing.

Stores are looked at without their values, and nothing that imports torch is touched. Shells take what they are offered
as if it had been typed, so only names that mean nothing else to them are.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from os import environ
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from stitchgrid.cli.options import STORE_VARIABLE, USUAL_STORE
from stitchgrid.cli.output import say

SHELLS = ("bash", "zsh", "fish")
MOST = 500  # offered at a time
PLAIN = re.compile(r"[\w./][\w./:@+,=%-]*")  # to bash, zsh and fish a word, and to a command no option
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def offering(names: Callable[[click.Context], Iterable[str]], *, files: bool = False) -> Complete:
    """Return a completion that offers the plain names that begin alike, and files where no name fits."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
        found: list[str] = []
        with suppress(Exception):  # a traceback in the middle of a command line helps nobody
            found = [name for name in names(ctx) if name.startswith(incomplete) and PLAIN.fullmatch(name)][:MOST]
        items = [CompletionItem(name) for name in found]
        return items if items or not files else [CompletionItem(incomplete, type="file")]

    return complete


def _store_of(ctx: click.Context) -> str:
    given: Any = ctx.params.get("store")
    return given or environ.get(STORE_VARIABLE) or USUAL_STORE


def _sweeps(ctx: click.Context) -> Iterable[str]:
    from stitchgrid.store import Store

    return Store.open(_store_of(ctx)).sweep_names()


def _layers(ctx: click.Context) -> Iterable[str]:
    """Yield networks of the sweep at hand, or of all, and their layers as `MODEL:LAYER`."""
    from stitchgrid.store import Store

    store = Store.open(_store_of(ctx))
    named = ctx.params.get("sweep")
    found: dict[str, None] = {}
    for sweep in [named] if named else store.sweep_names():
        layers = store.read_plan_tables(sweep, ("layers",))["layers"].to_pylist()
        found |= dict.fromkeys(row["model"] for row in layers)
        found |= dict.fromkeys(f"{row['model']}:{row['layer']}" for row in layers)
    return found


def _networks(ctx: click.Context) -> Iterable[str]:
    return (name for name in _layers(ctx) if ":" not in name)


def _queries(ctx: click.Context) -> Iterable[str]:  # noqa: ARG001
    from stitchgrid.shipped_files import shipped_names

    return shipped_names("queries", ".sql")


def _jobs(ctx: click.Context) -> Iterable[str]:  # noqa: ARG001
    from stitchgrid.shipped_files import shipped_names

    return shipped_names("jobs", ".toml")


def _kinds(ctx: click.Context) -> Iterable[str]:  # noqa: ARG001
    from stitchgrid.matchers.registry import MATCHERS

    return MATCHERS


def _architectures(ctx: click.Context) -> Iterable[str]:  # noqa: ARG001
    from stitchgrid.models.facts import known_architectures

    return known_architectures()


def _topics(ctx: click.Context) -> Iterable[str]:  # noqa: ARG001
    from stitchgrid.manual import TOPICS

    return TOPICS


complete_sweeps = offering(_sweeps)
complete_layers = offering(_layers)
complete_networks = offering(_networks)
complete_queries = offering(_queries, files=True)
complete_jobs = offering(_jobs, files=True)
complete_kinds = offering(_kinds)
complete_topics = offering(_topics)
complete_architectures = offering(_architectures, files=True)


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Write the script that lets a shell complete commands, sweeps, queries, jobs, networks and layers.

    \b
    Example:
      stitchgrid completion bash >> ~/.bashrc
      stitchgrid completion zsh >> ~/.zshrc
      stitchgrid completion fish > ~/.config/fish/completions/stitchgrid.fish
    """
    from stitchgrid.cli import cli

    made = get_completion_class(shell)
    assert made is not None
    say(made(cli, {}, "stitchgrid", "_STITCHGRID_COMPLETE").source())
