"""What `import stitchgrid` offers, used as in a notebook."""

import json
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from helpers_flow import TINY_JOB
from helpers_store import FAILED, SWEEP, make_synthetic_store
from matplotlib.backends.backend_agg import FigureCanvasAgg

import stitchgrid as sg
from stitchgrid.api import answer_list, comparison, launches, measures, runs, stitches, tables
from stitchgrid.api.measures import Index, Stitcher
from stitchgrid.errors import InputError, QueryError, StoreError
from stitchgrid.matchers.measures import fit_rows, index_of_rows
from stitchgrid.matchers.registry import MATCHERS

PUBLIC = {"Grid", "Run", "__version__", "compare", "errors", "images", "launch", "measures", "open", "plan", "resume"}
ATTRIBUTES = {  # of what one is given
    "Grid": {"get", "items", "keys", "sql", "values"},
    "Run": {
        *("answer", "answers", "atlas", "failures", "layers", "matrix", "networks", "query", "refresh", "results"),
        *("findings", "sql", "status", "stitch", "store", "summary", "sweep"),
    },
    "Table": {"arrow", "columns", "df", "pl"},
    "Matrix": {"columns", "df", "higher_is_similar", "mask", "plot", "reasons", "rows", "title", "values"},
    "Answers": {
        *(name for name in dir(list) if not name.startswith("_")),
        *("best", "checks", "interval", "margin", "only", "runner_up", "sentence", "verdict"),
    },
    "NetworkStitch": {"bias", "map", "matcher", "network", "save", "source", "target", "weight"},
    "Atlas": {"figures", "html", "save"},
}
ON_ARRAYS = {name for name, about in MATCHERS.items() if not about.is_trained}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return make_synthetic_store(tmp_path_factory.mktemp("grid")).store.uri


@pytest.fixture
def run(grid):
    return sg.open(grid)[SWEEP]


def rows(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# The surface


def test_what_is_offered_is_what_was_decided_on():
    assert set(sg.__all__) == set(dir(sg)) == PUBLIC
    assert all(getattr(sg, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError, match="has no attribute 'cka'; it offers Grid, Run"):
        _ = sg.cka


def test_what_one_is_given_offers_what_was_decided_on(run, grid):
    given = {
        "Grid": sg.open(grid),
        "Run": run,
        "Table": run.results(),
        "Matrix": measures.cka.matrix({"a": rows(5, 2)}, {"b": rows(5, 2)}),
        "Answers": run.answer(),
        "NetworkStitch": stitches.NetworkStitch,
        "Atlas": run.atlas(),
    }
    own = {"NetworkStitch": {"map", "matcher", "network", "source", "target"}}  # of instances
    for name, one in given.items():
        public = {word for word in dir(one) if not word.startswith("_")}
        assert public | own.get(name, set()) == ATTRIBUTES[name], name


def public_of(module):
    """Yield what a module of the API defines that has no underscore, and its methods and properties."""
    for name, one in vars(module).items():
        if name.startswith("_") or getattr(one, "__module__", None) != module.__name__:
            continue
        yield f"{module.__name__}.{name}", one
        if isinstance(one, type):
            for word, member in vars(one).items():
                inner = member.fget if isinstance(member, property) else getattr(member, "func", member)
                if not word.startswith("_") and callable(inner):
                    yield f"{module.__name__}.{name}.{word}", inner


def test_every_public_name_has_a_docstring():
    found = dict(
        pair for module in (answer_list, comparison, launches, runs, stitches, tables) for pair in public_of(module)
    )
    found |= dict(public_of(measures))
    assert len(found) > 50
    assert [name for name, one in found.items() if not (one.__doc__ or "").strip()] == []


def test_it_is_typed():
    assert (Path(sg.__file__).parent / "py.typed").is_file()
    stub = (Path(sg.__file__).parent / "__init__.pyi").read_text()
    assert all(re.search(rf"\b{name}\b", stub) for name in PUBLIC)


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys; before = set(sys.modules); import stitchgrid as sg; dir(sg); sg.__version__\n"
        "print({m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "{'stitchgrid'}"


# Stores


def test_a_store_is_a_mapping_of_its_sweeps(grid):
    found = sg.open(grid)
    assert list(found) == [SWEEP]
    assert len(found) == 1
    assert SWEEP in repr(found)
    with pytest.raises(KeyError, match="no sweep 'x' in the store"):
        found["x"]
    with pytest.raises(StoreError, match="no store at"):
        sg.open(grid + "-none")


def test_results_are_what_sql_says_in_every_form(run, grid):
    wanted = sg.open(grid).sql(f"select * exclude (sweep) from results where sweep = '{SWEEP}'")
    found = run.results()
    assert found.arrow().sort_by("cell_id").num_rows == len(found) == len(wanted) > 0
    frame, polars = found.df(), found.pl()
    assert isinstance(frame, pd.DataFrame)
    assert isinstance(polars, pl.DataFrame)
    assert list(frame.columns) == polars.columns == found.columns
    assert duckdb.sql("select count(*) from found").fetchall() == [(len(found),)]
    assert found["value"] == frame["value"].replace({np.nan: None}).tolist()
    assert [row["metric"] for row in found] == found["metric"]
    with pytest.raises(KeyError, match="no column 'x'; there are "):
        found["x"]


def test_tables_show_themselves(run):
    table = run.sql("select '<b>' as name, 0.123456::double as value")
    assert repr(table).splitlines()[0].split() == ["name", "value"]
    assert "&lt;b&gt;" in table._repr_html_()
    assert "<td>0.1235</td>" in table._repr_html_()


def test_a_question_is_asked_of_this_sweep(run):
    found = run.query("best_source", matcher="cka")
    assert set(found["sweep"]) == {SWEEP}
    assert set(found["matcher"]) == {"cka"}
    with pytest.raises(QueryError, match="no parameter"):
        run.query("best_source", nonsense=1)


def test_a_matrix_has_the_values_of_the_store(run):
    rows_of = run.sql("select * from results where sweep = $sweep and matcher = 'cka' and metric = 'cka'")
    some = next(iter(rows_of))
    matrix = run.matrix(some["source_model"], some["target_model"], "cka")
    values = {
        (row["source_layer"], row["target_layer"]): row["value"]
        for row in rows_of
        if (row["source_model"], row["target_model"]) == (some["source_model"], some["target_model"])
    }
    assert matrix.higher_is_similar is True
    for i, f in enumerate(matrix.rows):
        for j, g in enumerate(matrix.columns):
            assert matrix.values[i, j] == pytest.approx(values.get((f, g), np.nan), nan_ok=True)
    assert np.array_equal(np.asarray(matrix), matrix.values, equal_nan=True)
    assert matrix.df().loc[matrix.rows[0], matrix.columns[0]] == matrix.values[0, 0]
    assert matrix.plot().get_xlabel() == "target"
    assert "<th>" in matrix._repr_html_()
    with pytest.raises(QueryError, match=r"no cells of cka from 'x' into"):
        run.matrix("x", some["target_model"], "cka")
    with pytest.raises(QueryError, match=r"there is no matcher 'CKA'"):
        run.matrix(some["source_model"], some["target_model"], "CKA")


def test_the_heat_map_of_few_layers_has_room_for_its_texts():
    names = ["stages.0.add", "stages.1.add", "pool"]
    matrix = tables.Matrix(
        np.eye(3), names, names, title="direct residual of wide/0 into deep/1", higher_is_similar=False
    )
    axes = matrix.plot()
    figure = axes.get_figure()
    drawn = FigureCanvasAgg(figure).get_renderer()
    figure.draw(drawn)
    [bar] = [other for other in figure.axes if other is not axes]
    assert bar.yaxis.label.get_window_extent(drawn).height <= bar.get_window_extent(drawn).height
    for text in (axes.title, bar.yaxis.label, axes.xaxis.label, axes.yaxis.label):
        ends = text.get_window_extent(drawn)
        assert ends.x0 >= 0
        assert ends.x1 <= figure.bbox.width


def test_answers_networks_failures_status_and_the_page(run, tmp_path):
    one = run.answer()[0]
    assert one in run.answer(target=one.target_model, layer=one.target_layer, source=one.source_model)
    assert len(run.answers()) >= len(run.answer())
    with pytest.raises(InputError, match="name the target, too"):
        run.answer(layer="x")
    assert FAILED.cell_id in run.failures["cell_id"] if hasattr(FAILED, "cell_id") else len(run.failures) > 0
    assert len(run.networks) > 0 < len(run.layers)
    assert run.status().num_cells > 0
    page = run.atlas()
    page.save(tmp_path / "atlas.html")
    assert (tmp_path / "atlas.html").read_text() == page.html
    assert page._repr_html_().startswith('<iframe srcdoc="')
    with pytest.raises(InputError, match="cannot write"):
        page.save(tmp_path / "none" / "atlas.html")
    [drawn] = page.figures(tmp_path / "figures", only=["cka"], formats=["svg"], width=3.25)
    assert drawn.name == f"{SWEEP}-heatmap-cka-cka.svg"
    with pytest.raises(InputError, match="there is no network 'net/7'; did you mean 'net/"):
        page.figures(tmp_path / "figures", pair=("net/7", "net/1"))
    run.refresh()
    assert "cells)" in repr(run)


def test_a_notebook_shows_everything(run, grid):
    found = run.answer()
    one = found[0]
    for shown in (run, sg.open(grid), found, run.status(), run.atlas(), run.results(), run.networks):
        assert shown._repr_html_().startswith("<")
    assert one.target_layer in found._repr_html_()
    assert SWEEP in sg.open(grid)._repr_html_()
    alone = answer_list.Answers([one])
    assert (alone.best, alone.verdict, alone.margin) == (one.source_layer, one.verdict, one.margin)
    assert (alone.interval, alone.checks, alone.runner_up) == ((one.low, one.high), one.checks, one.runner_up)
    with pytest.raises(InputError, match=r"exactly one answer is wanted, got 0; it is not computed yet"):
        _ = answer_list.Answers().best


JOB = TINY_JOB.replace('name = "s"', 'name = "tiny"')


def test_a_job_is_planned_launched_and_resumed(tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    assert "cells: 4, to compute 4" in sg.plan(tmp_path / "job.toml", tmp_path / "grid", address="none")
    run = sg.launch(tmp_path / "job.toml", tmp_path / "grid", address="none", overrides=["data.eval.samples=16"])
    assert np.diag(run.matrix("net", "net", "cka").values) == pytest.approx(1)
    assert set(run.results()["num_eval"]) == {16}
    assert len(sg.resume("tiny", tmp_path / "grid", address="none").results()) == 4
    few = {"address": "none", "overrides": ["data.eval.samples=16"], "recompute": ["cka"]}
    assert "4 asked for again" in sg.plan(tmp_path / "job.toml", tmp_path / "grid", **few)
    for again in (
        sg.launch(tmp_path / "job.toml", tmp_path / "grid", **few),
        sg.resume("tiny", tmp_path / "grid", address="none", recompute=["net"]),
    ):
        assert again.summary.num_computed == 4
        assert len(again.results()) == 4
    with pytest.raises(InputError, match=r"--recompute 'x' is no matcher and no model of job 'tiny'"):
        sg.resume("tiny", tmp_path / "grid", address="none", recompute=["x"])


# Measures


def test_every_index_and_closed_form_is_offered():
    assert {name for name in vars(measures) if isinstance(getattr(measures, name), Index | Stitcher)} == ON_ARRAYS
    for name in ON_ARRAYS:
        one = getattr(measures, name)
        assert isinstance(one, Index if MATCHERS[name].family == "index" else Stitcher)
        assert MATCHERS[name].source in one.__doc__
        assert MATCHERS[name].summary in repr(one)


@pytest.mark.parametrize("name", sorted(ON_ARRAYS))
@pytest.mark.parametrize("kind", ["float64", "float32", "torch", "lists"])
def test_a_measure_of_arrays_is_the_kinds_own(name, kind):
    x, y = rows(40, 5), rows(40, 5, seed=1)
    given = {
        "float64": (x, y),
        "float32": (x.astype("float32"), y.astype("float32")),
        "torch": (torch.tensor(x, requires_grad=True), torch.tensor(y)),
        "lists": (x.tolist(), y.tolist()),
    }[kind]
    exact = [torch.tensor(np.asarray(a.detach() if isinstance(a, torch.Tensor) else a)) for a in given]
    measure = getattr(measures, name)
    if isinstance(measure, Index):
        wanted = index_of_rows(name, *exact)
        assert measure.all(*given) == pytest.approx(wanted)
        assert measure(*given) == pytest.approx(wanted[MATCHERS[name].score])
        return
    params = {"map_rank": 2} if name == "reduced_rank" else {}
    stitch, fit = measure(*given, **params), fit_rows(name, *exact, **params)
    assert stitch.weight == pytest.approx(fit.map.weight_DE.double().numpy())
    mapped = x @ stitch.weight + stitch.bias
    assert stitch(x) == pytest.approx(mapped)
    assert stitch.residual == pytest.approx(((mapped - y) ** 2).sum() / (y**2).sum(), rel=1e-5)
    assert stitch.r2 == pytest.approx(1 - ((mapped - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum(), rel=1e-5, abs=1e-6)
    assert stitch.residual_on(x, y) == pytest.approx(stitch.residual)


@pytest.mark.parametrize("name", sorted(name for name in ON_ARRAYS if MATCHERS[name].family == "index"))
def test_a_matrix_of_layers_has_every_pair(name):
    xs = {f"a{k}": rows(40, 5, seed=k) for k in range(2)}
    ys = {f"b{k}": rows(40, 5, seed=5 + k) for k in range(3)}
    measure = getattr(measures, name)
    found = measure.matrix(xs, ys)
    assert (found.rows, found.columns) == (["a0", "a1"], ["b0", "b1", "b2"])
    wanted = [[measure(x, y) for y in ys.values()] for x in xs.values()]
    assert found.values == pytest.approx(np.array(wanted))


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (rows(4, 2), rows(5, 2), "wants rows of the same images in x and y, got 4 and 5"),
        (rows(4, 2, 2), rows(4, 2), r"x must have the shape \(rows, features\), got \(4, 2, 2\)"),
        (np.full((4, 2), np.nan), rows(4, 2), "x has inf or NaN"),
        (rows(4, 2), "text", "y must be an array of numbers"),
        (rows(1, 2), rows(1, 2), "wants at least 2 rows, got 1"),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_what_was_wanted(x, y, told):
    with pytest.raises(InputError, match=told):
        measures.cka(x, y)


def test_parameters_that_a_kind_does_not_have_are_refused():
    with pytest.raises(InputError, match=r"cka: parameter 'bandwidth': .*; its parameters are none"):
        measures.cka(rows(4, 2), rows(4, 2), bandwidth=1)
    with pytest.raises(InputError, match=r"needs a target as wide as the source at least, and x has 3 features, y 2"):
        measures.orthogonal(rows(9, 3), rows(9, 2))


def test_what_is_undefined_is_nan_with_its_reason():
    flat = np.ones((5, 2))
    assert np.isnan(measures.cka(flat, rows(5, 2)))
    assert measures.cka.why_undefined(flat, rows(5, 2)) == "cka is undefined: the rows of x are all the same"
    assert measures.cka.why_undefined(rows(5, 2), rows(5, 2)) is None
    assert "wants rows of the same images" in measures.cka.why_undefined(rows(5, 2), rows(4, 2))
    found = measures.cka.matrix({"flat": flat, "a": rows(5, 2)}, {"b": rows(5, 3)})
    assert found.mask.tolist() == [[True], [False]]
    assert found.reasons == {("flat", "b"): "cka is undefined: the rows of x are all the same"}
    wide = measures.soft_matching.matrix({"a": rows(5, 2)}, {"b": rows(5, 2), "wide": rows(5, 1025)})
    assert wide.mask.tolist() == [[False, True]]
    assert wide.reasons["a", "wide"] == (
        "soft_matching takes layers of up to 1,024 features, and a has 2 features, wide 1,025"
    )


def test_every_measure_says_what_is_to_be_known_before_it_is_believed():
    for name in ON_ARRAYS:
        lines = getattr(measures, name).__doc__.splitlines()
        told = {line.partition(":")[0] for line in lines}
        wanted = {"takes", "gives", "bias", "not when", "source", "ranks layers by", "order of the layers"}
        assert wanted <= told, name


def test_json_of_a_run_is_what_programs_need(run):
    assert json.loads(run.results().df().to_json(orient="records"))


def test_what_the_readme_shows_runs_as_it_stands_there(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    code = re.search(r"## In Python\n\n```python\n(.*?)```", text, re.DOTALL)[1]
    job = JOB.replace('name = "tiny"', 'name = "quickstart"').replace("[[matchers]]", "seeds = [0, 1]\n[[matchers]]")
    (tmp_path / "quickstart").write_text(job.replace('"cka"', '"cka_unbiased"\n[[matchers]]\nkind = "direct"'))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.count(" <- ") > 0
    assert (tmp_path / "atlas.html").stat().st_size > 1000
