import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from stitchgrid.cli import cli
from stitchgrid.matchers.params import Rules

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "name", sorted(path.name + "/" * path.is_dir() for path in (ROOT / "stitchgrid").iterdir() if path.name[0] != "_")
)
def test_the_readme_maps_every_module(name):
    assert f"`{name}`" in README


def test_the_readme_names_no_module_that_is_not_there():
    named = [line.split("`")[1] for line in README.splitlines() if line.startswith("| `")]
    rows = [name for name in named if name.endswith(("/", ".py"))]
    assert len(rows) > 10
    missing = [row for row in rows if not (ROOT / row).exists() and not (ROOT / "stitchgrid" / row).exists()]
    assert missing == []


@pytest.mark.parametrize("name", Rules.model_fields)
def test_the_readme_explains_every_rule_of_alignment(name):
    field = Rules.model_fields[name]
    for value in get_args(field.annotation):
        assert value == field.default or f'`{name} = "{value}"`' in README


@pytest.mark.parametrize("command", cli.commands.values(), ids=lambda command: command.name)
def test_every_command_explains_itself_with_an_example(command):
    assert "Example:" in command.help


def test_importing_the_command_line_loads_nothing_heavy():
    code = "import stitchgrid.cli, sys; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()
    assert not {"torch", "ray", "duckdb", "pyarrow", "pydantic", "matplotlib"} & set(loaded)
