"""The arithmetic of the page, run by node's own test runner against answers of Python, numpy and scipy."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from stitchgrid.atlas.grids import Panel
from stitchgrid.atlas.packing import Arrays
from stitchgrid.atlas.page import ARITHMETIC, join_modules
from stitchgrid.atlas.scales import choose_scale
from stitchgrid.matchers.metrics import FROM_ZERO, OPEN, UNIT

TESTS = Path(__file__).with_name("atlas_arithmetic.test.mjs")
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="node is not installed: the page's arithmetic is not tested")
def test_the_arithmetic_of_the_page(tmp_path):
    names = re.findall(r"[\w]+", TESTS.read_text("utf-8").partition("const {")[2].partition("}")[0])
    script = join_modules(ARITHMETIC).removeprefix('"use strict";\n(() => {').removesuffix("})();\n")
    (tmp_path / "arithmetic.mjs").write_text(f"{script}\nexport {{{', '.join(names)}}};\n", "utf-8")
    (tmp_path / "answers.json").write_text(json.dumps(answers()), "utf-8")
    paths = {"ATLAS_ARITHMETIC": (tmp_path / "arithmetic.mjs").as_uri(), "ATLAS_ANSWERS": tmp_path / "answers.json"}
    done = subprocess.run(
        [NODE, "--test", "--test-reporter=tap", TESTS],
        env={name: str(path) for name, path in paths.items()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"# pass 1[0-9]\b", done.stdout), done.stdout


def answers():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(30, 2))
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    return {
        "best": [best_of(rng) for _ in range(60)],
        "scales": [scale_of(rng, ends) for ends in (UNIT, FROM_ZERO, OPEN) for _ in range(4)],
        "packed": packed(),
        "eigen": [eigen_of(rng, size) for size in (1, 2, 5, 40, 120)],
        "plane": {"distances": numbers(distances), "size": 30},
        "trees": [tree_of(rng, size) for size in (2, 3, 12, 40)],
    }


def numbers(values):
    """Return numbers as JSON can hold them."""
    return [
        None if math.isnan(one) else str(one).replace("inf", "Infinity") if math.isinf(one) else one
        for one in np.ravel(values).tolist()
    ]


def best_of(rng):
    rows, columns = rng.integers(1, 7, size=2)
    values = rng.choice([0.0, 0.5, 0.5 + 5e-7, 0.9, np.nan, np.inf], size=(rows, columns))
    diverged = rng.random((rows, columns)) < 0.1
    higher = [True, False, None][rng.integers(3)]
    panel = Panel(source=0, target=0, values_ST=values, notes_ST=np.zeros((rows, columns), int), diverged_ST=diverged)
    return {
        "values": numbers(values),
        "rows": int(rows),
        "columns": int(columns),
        "higher": higher,
        "diverged": diverged.ravel().tolist(),
        "best": panel.best(higher).ravel().tolist(),
    }


def scale_of(rng, ends):
    values = np.exp(rng.normal(0, rng.choice([0.5, 3.0]), 50))
    scale, higher = choose_scale(ends, values), bool(rng.integers(2))
    places = scale.position(values)
    return {
        "scale": asdict(scale),
        "higher": higher,
        "values": numbers(values),
        "places": numbers(places if higher else 1 - places),
    }


def packed():
    arrays = Arrays()
    arrays.add_numbers(np.array([0.1, np.nan, -np.inf]), many=False)
    arrays.add_codes(np.array([1, 2, 3]))
    arrays.add_numbers(np.array([0.5]), many=True)
    arrays.add_codes(np.array([300]))
    return arrays.content()


def eigen_of(rng, size):
    matrix = rng.normal(size=(size, size))
    matrix = matrix + matrix.T
    spread = rng.normal(size=(size, 2)) * 10
    matrix += spread @ spread.T
    return {"matrix": numbers(matrix), "size": size, "values": numbers(np.linalg.eigvalsh(matrix)[::-1])}


def tree_of(rng, size):
    points = rng.normal(size=(size, 3))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    merges = linkage(squareform(distances, checks=False), "average")
    return {
        "distances": numbers(distances),
        "size": size,
        "heights": numbers(merges[:, 2]),
        "sizes": numbers(merges[:, 3]),
    }
