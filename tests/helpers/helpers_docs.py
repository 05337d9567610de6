"""Code blocks of README and of the manual, and how those of each language are tried."""

import re
import shlex
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

import click

from stitchgrid.cli import cli
from stitchgrid.manual import TOPICS, page

ROOT = Path(__file__).parents[2]
PAGES = {"README": (ROOT / "README.md").read_text()} | {topic: page(topic) for topic in TOPICS}
FENCE = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
BEFORE = {"&&", "||", ";", "--", "do"}
ENDS = {"&&", "||", "|", ">", ";", "&", "\n"}  # of a command in a line

#: A job with all sorts of results, in seconds; it goes by the name that the pages use.
JOB = """
name = "quickstart"
[data]
dataset = "digits"
fit = { samples = 60 }
eval = { samples = 40 }
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
args = { depth = 8, width = 4 }
weights = "random"
seeds = [0, 1]
layers = ["layer1.0", "layer2.0"]
[[matchers]]
kind = "direct"
[[matchers]]
kind = "task_loss"
epochs = 1
[[matchers]]
kind = "cka"
rank = ["full", 2]
[probes]
rank = ["full", 2]
[controls]
shuffled = 2
[intervals]
groups = 4
"""

#: What a fragment of a job file is put into.
AROUND = """
name = "around"
[data]
dataset = "digits"
[[models]]
name = "net"
architecture = "stitchgrid:resnet20"
weights = "random"
[[matchers]]
kind = "direct"
"""


@dataclass(frozen=True)
class Block:
    """One code block of a page."""

    page: str
    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that it is, where its first line says so."""
        found = re.match(r"# (\S+\.py)\n", self.text)
        return found[1] if found else None


def blocks(*languages: str) -> list[Block]:
    """Return the code blocks in some languages, of all pages; all of them where none is named."""
    return [
        Block(name, found["language"], textwrap.dedent(found["text"]), text[: found.start()].count("\n") + 2)
        for name, text in PAGES.items()
        for found in FENCE.finditer(text)
        if not languages or found["language"] in languages
    ]


def commands_in(text: str) -> list[list[str]]:
    """Return the words of each `stitchgrid` command in shell text, without what calls it or takes its output.

    >>> commands_in("pip install -e . && stitchgrid query best --out a.csv > log  # all")
    [['query', 'best', '--out', 'a.csv']]
    """
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|>")
        lexer.whitespace_split = True
        words = list(lexer)
        for at in [k for k, word in enumerate(words) if word == "stitchgrid" and (k == 0 or words[k - 1] in BEFORE)]:
            end = next((k for k in range(at, len(words)) if words[k] in ENDS), len(words))
            found.append(words[at + 1 : end])
    return found


def check_command(words: list[str]) -> None:
    """See that the command line takes these words; nothing runs."""
    name, *arguments = words
    assert name in cli.commands, f"there is no command {name!r}"
    with click.Context(cli) as around:
        cli.commands[name].make_context(name, arguments, parent=around)


def merged(fragment: str) -> dict:
    """Return a job with a fragment put into it: tables join, anything else takes the place of what was there."""
    table, given = tomllib.loads(AROUND), tomllib.loads(fragment)
    for key, value in given.items():
        table[key] = {**table[key], **value} if isinstance(value, dict) and isinstance(table.get(key), dict) else value
    return table
