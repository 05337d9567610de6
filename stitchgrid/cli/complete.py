"""Completions for a shell when Tab is pressed; if anything goes wrong, there are none, and no message.

Completion must be fast: it reads no values of a store, and imports nothing that needs torch. A shell inserts a
completion as if the user had typed it, so only names without special characters are offered.
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
MOST = 500  # most completions at a time
PLAIN = re.compile(r"[\w./][\w./:@+,=%-]*")  # one word for bash, zsh and fish, and not an option
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def offering(names: Callable[[click.Context], Iterable[str]], *, files: bool = False) -> Complete:
    """Return a function that completes plain names; with `files`, it completes paths where no name fits."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
        found: list[str] = []
        with suppress(Exception):  # a traceback would appear in the middle of the command line
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
    """Return networks, and their layers as `MODEL:LAYER`, of the sweep on the command line, else of all sweeps."""
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
    """Print the script with which a shell completes commands, sweeps, queries, jobs, networks and layers.

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
