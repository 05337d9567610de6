"""The kinds that the manual shows how to add, added as they stand there, held to the contract, run by the engine.

What else is added there takes the files that the manual lists, and no others.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import test_kinds as contract
from helpers_docs import ROOT
from helpers_engine import (
    FEW,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401  # a fixture
    reference,
    run,
    trained_zoo,
    unlike_reference,
)

from stitchgrid.manual import page
from stitchgrid.matchers import registry
from stitchgrid.matchers.protocol import Kind

EXAMPLES = dict(re.findall(r"```python\n# (stitchgrid/\S+)\n(.*?)```", page("contributing"), flags=re.S))


@pytest.fixture(params=["indices/rv", "stitchers/shift"])
def added(request, monkeypatch) -> str:
    """Return the name of a kind after its two files and its line are there."""
    for folder in ("matchers", "reference"):
        path = f"stitchgrid/{folder}/{request.param}.py"
        name = path.removesuffix(".py").replace("/", ".")
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(EXAMPLES[path], path, "exec"), vars(module))
    written = vars(sys.modules[f"stitchgrid.matchers.{request.param.replace('/', '.')}"]).values()
    [kind] = [one for one in written if isinstance(one, type) and issubclass(one, Kind) and "about" in vars(one)]
    about = kind.about
    monkeypatch.setitem(registry._BY_NAME, about.kind, kind)
    monkeypatch.setitem(registry.MATCHERS, about.kind, about)
    return about.kind


def test_the_example_is_its_oracle(added):
    for shape in contract.SHAPES:
        contract.test_a_kind_is_its_oracle_on_explicit_matrices(added, shape)
    for scale in contract.SCALES:
        contract.test_a_kind_is_its_oracle_whatever_the_type_and_scale_of_its_numbers(added, scale)


def test_the_example_keeps_its_claims(added):
    for side in ("source", "target"):
        for name in contract.transforms(1):
            contract.test_a_kind_is_invariant_to_what_it_claims_and_to_nothing_else(added, side, name)
    contract.test_a_kind_says_what_people_ask(added)
    if registry.MATCHERS[added].family == "index":
        contract.test_an_index_is_symmetric_if_it_says_so_and_else_is_not(added)


def test_the_engine_runs_the_example_as_the_reference_does(added):
    zoo = trained_zoo()
    sweep = make_sweep(
        zoo, [("conv", "conv_again"), ("conv", "token")], [matcher(added), matcher("direct")], layers=FEW
    )
    rows, found = run(zoo, sweep), reference(zoo, sweep)
    assert added in {row.matcher for row in rows if row.value is not None}
    assert not unlike_reference(sweep, rows, found)


# In a copy of the whole package

QUERY = re.search(r"```sql\n(.*?)```", page("contributing"), flags=re.S)[1]
SOURCE = '''"""One grey image."""

import numpy as np

from stitchgrid.datasets.images import Listing
from stitchgrid.datasets.sources import Decoded


class GreySource:
    """One grey image in every split."""

    def __init__(self, root, splits, **how):
        self.splits = splits

    def signature(self):
        return None

    def listing(self, split):
        return Listing(num=1, class_names=("grey",))

    def names(self, split):
        return ()

    def read(self, wanted):
        for position in wanted:
            yield position, Decoded(pixels=np.full((3, 8, 8), 127, np.uint8), label=0)
'''
FUNCTION = '''

def as_lines(table: pa.Table) -> str:
    """Return the first column, a value a line."""
    return "".join(f"{value}\\n" for value in table.column(0).to_pylist())
'''
#: File -> what an entry stands before, and the entry.
ENTRIES = {
    "stitchgrid/matchers/registry.py": (
        ")\n\n\ndef _load(",
        '    "indices.rv:RV",\n    "stitchers.shift:Shift",\n',
    ),
    "stitchgrid/datasets/registry.py": (
        "}\nWITH_KEYS",
        '    "grey": DatasetKind(where="grey:GreySource", says="one grey image", needs_root=False),\n',
    ),
    "stitchgrid/catalog/output_formats.py": (
        "    )\n}\n\n\ndef format_by_suffix",
        '        OutputFormat(name="lines", where="formats:as_lines", says="the first column", suffix=".lines"),\n',
    ),
}
ADDED = ("an index", "a stitcher in closed form", "a query", "another data set", "a format of tables")
USE = """
from pathlib import Path
import numpy as np, pyarrow as pa, stitchgrid as sg
from stitchgrid.catalog import list_questions
from stitchgrid.catalog.formats import render
from stitchgrid.cli.files_out import format_of
from stitchgrid.datasets import open_images
from stitchgrid.jobfile.tables import DataTable
from stitchgrid.records import DataSpec

x = np.random.default_rng(0).normal(size=(50, 4))
assert abs(sg.measures.rv(x, x) - 1) < 1e-9 and sg.measures.shift(x, x + 1).residual < 1e-12
assert "bias: with N below D it is above 0" in sg.measures.rv.__doc__
assert open_images(DataSpec(dataset=DataTable(dataset="grey").dataset, root=None), cache=Path("cache")).eval.num == 1
assert render(pa.table({"seven": [7]}), format_of(None, "a.lines")) == "7\\n"
assert "pairs_of_matchers" in [one.name for one in list_questions()]
"""


def files_in(folder: Path) -> dict[str, bytes]:
    paths = [one for one in folder.rglob("*") if one.is_file() and one.suffix != ".pyc"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_additions_take_the_files_that_the_manual_lists(tmp_path):
    copy = tmp_path / "copy"
    for name in ("stitchgrid", "queries", "jobs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    before = files_in(copy)
    written = dict(EXAMPLES) | {"queries/pairs_of_matchers.sql": QUERY, "stitchgrid/datasets/grey.py": SOURCE}
    for path, text in written.items():
        (copy / path).write_text(text)
    with (copy / "stitchgrid/catalog/formats.py").open("a") as opened:
        opened.write(FUNCTION)
    for path, (where, entry) in ENTRIES.items():
        text = (copy / path).read_text()
        assert text.count(where) == 1, f"{path} has changed: write here where an entry goes"
        (copy / path).write_text(text.replace(where, entry + where))

    def run(*words: str) -> None:
        told = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.returncode == 0, told.stdout + told.stderr

    run("-m", "stitchgrid.manual")
    after = files_in(copy)
    changed = {path for path, content in after.items() if before.get(path) != content}
    assert changed == listed(), "the table of manual/contributing.md lists other files"
    run("-c", USE)


def listed() -> set[str]:
    """Return the files that the manual lists for what is added here."""
    kinds = {"an index": "rv", "a stitcher in closed form": "shift"}
    rows = dict(re.findall(r"^\| (an? [^|]+|another [^|]+) \| (.*) \|$", page("contributing"), flags=re.M))
    found = set()
    for what in ADDED:
        text = rows[what].replace("KIND", kinds.get(what, "")).replace("FILE", "grey")
        paths = re.findall(r"`(\w+/[\w/]+\.\w+)`", text.replace("NAME", "pairs_of_matchers"))
        found |= {path if path.startswith("queries/") else f"stitchgrid/{path}" for path in paths}
    return found
