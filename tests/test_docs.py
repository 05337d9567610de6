import subprocess
import sys
from pathlib import Path

import pytest

from stitchgrid.cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "name", sorted(path.name + "/" * path.is_dir() for path in (ROOT / "stitchgrid").iterdir() if path.name[0] != "_")
)
def test_the_readme_maps_every_module(name):
    assert f"`{name}`" in README


def test_the_readme_names_no_module_that_is_not_there():
    rows = [line.split("`")[1] for line in README.splitlines() if line.startswith("| `") and "stitchgrid " not in line]
    assert rows
    missing = [row for row in rows if not (ROOT / row).exists() and not (ROOT / "stitchgrid" / row).exists()]
    assert missing == []


@pytest.mark.parametrize("command", cli.commands.values(), ids=lambda command: command.name)
def test_every_command_explains_itself_with_an_example(command):
    assert "Example:" in command.help


def test_importing_the_command_line_loads_nothing_heavy():
    code = "import stitchgrid.cli, sys; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()
    assert not {"torch", "ray", "duckdb", "pyarrow", "pydantic", "matplotlib"} & set(loaded)
