"""The atlas: what the page holds is what the store holds, gaps included, whatever the names in it."""

import base64
import gzip
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pytest
from helpers_answers import drawn
from helpers_store import (
    ERROR,
    FAILED,
    FLAG,
    FLAGGED,
    LAYERS,
    MODELS,
    PENDING,
    SWEEP,
    TIE,
    VIOLATION,
    find_cell,
    make_row,
    make_synthetic_store,
    plan_tables,
    planned_cells,
    value_of,
)
from hypothesis import example, given
from hypothesis import strategies as st

from stitchgrid.atlas import write_atlas
from stitchgrid.atlas.grids import EVIDENCE, Panel, connected
from stitchgrid.atlas.packing import DIGITS, TYPES, Arrays, to_digits
from stitchgrid.atlas.page import SERVED, embed, join_modules
from stitchgrid.atlas.reading import read_sweep
from stitchgrid.atlas.scales import choose_scale
from stitchgrid.catalog import Catalog, load_question
from stitchgrid.errors import InputError, QueryError
from stitchgrid.matchers.metrics import FROM_ZERO, OPEN, UNIT
from stitchgrid.store import Store

HOSTILE = {
    "net/0": "</script><script>alert(1)</script>",
    "net/1": "\"><img src='https://evil.example/x' onerror=alert(2)> $x^{$ \u2028 層",
    "conv1": "<!--<script>",
    "block1": "a'b\"c&amp;",
}


class Page(HTMLParser):
    """A page as a browser's parser sees it."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._inside = [], {}, None
        self.feed(text)
        self.close()
        self.data = json.loads(self.text["data"])
        self.sweeps = {sweep["name"]: sweep for sweep in self.data["sweeps"]}
        self.arrays = {name: read_arrays(sweep) for name, sweep in self.sweeps.items()}

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        self._inside = attributes.get("id") or tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.text[self._inside] = self.text.get(self._inside, "") + data

    def choice(self, label, metric, seed=None, sweep=SWEEP):
        wanted = label, metric, seed
        choices = self.sweeps[sweep]["choices"]
        return next(one for one in choices if (one["label"], one["metric"], one["seed"]) == wanted)

    def panels(self, sweep=SWEEP):
        """Return where the layer pairs of each pair of networks begin, and how many source and target layers it has."""
        networks = self.sweeps[sweep]["networks"]
        ends = [self.arrays[sweep][self.sweeps[sweep][side]] for side in ("sources", "targets")]
        start, found = 0, {}
        for pair in zip(*(end.tolist() for end in ends), strict=True):
            rows, columns = (len(networks[one]["layers"]) for one in pair)
            found[pair] = (start, rows, columns)
            start += rows * columns
        return found

    def values(self, choice, sweep=SWEEP):
        """Return the values of a choice, by layer pair."""
        return self.arrays[sweep][choice["values"]]

    def square(self, cell, metric):
        """Return value (None for none) and note of a cell's square."""
        start, _, columns = self.panels()[MODELS.index(cell.source_model), MODELS.index(cell.target_model)]
        k = start + LAYERS.index(cell.source_layer) * columns + LAYERS.index(cell.target_layer)
        choice = self.choice(cell.matcher, metric, cell.seed)
        value = float(self.values(choice)[k])
        note = self.sweeps[SWEEP]["notes"][self.arrays[SWEEP][choice["notes"]][k]]
        return None if math.isnan(value) else value, note


def read_arrays(sweep):
    """Return the arrays of a sweep as the page reads them."""
    data, offset, arrays = gzip.decompress(base64.b64decode(sweep["gzip"])), 0, []
    for word, length in sweep["arrays"]:
        array = np.frombuffer(data, TYPES[word], length, offset)
        arrays.append(array)
        offset += -(-array.nbytes // 8) * 8
    assert offset == len(data)
    return arrays


def write_page(store, path, sweeps=None, **options):
    with Catalog(store) as catalog:
        report = write_atlas(catalog, catalog.sweeps if sweeps is None else sweeps, path, **options)
    return Page(path.read_text("utf-8")), report


def grids_of(store, sweep=SWEEP):
    with Catalog(store) as catalog:
        return read_sweep(catalog, sweep)


def write_sweep(folder, cells, rows, tables=None):
    """Write a sweep of some of the synthetic cells with these rows."""
    store = Store.open(folder, create=True)
    tables = tables or plan_tables()
    ids = pa.array([cell.cell_id for cell in cells])
    tables["cells"] = tables["cells"].filter(pa.compute.is_in(tables["cells"]["cell_id"], ids))
    store.write_plan(SWEEP, store.write_job(SWEEP, {}), **tables, info={})
    if rows:
        store.write_part("shard", rows)
    return store


@pytest.fixture(scope="module")
def written(store, tmp_path_factory):
    return write_page(store, tmp_path_factory.mktemp("page") / "atlas.html")


@pytest.fixture(scope="module")
def page(written):
    return written[0]


# What the page holds --------------------------------------------------------------------------------------------------


def test_every_square_holds_the_stored_value_to_the_last_bit(page):
    without_row = {find_cell(FAILED, "cka").cell_id, find_cell(PENDING, "procrustes").cell_id}
    for cell in planned_cells():
        for metric in cell.metrics:
            value, note = page.square(cell, metric)
            expected = None if cell.cell_id in without_row else value_of(cell, metric)
            assert value == expected
            assert (value is None) == (note["state"] != "value")


def test_a_missing_square_says_why_and_is_never_zero(page):
    failed = page.square(find_cell(FAILED, "cka"), "cka")
    pending = page.square(find_cell(PENDING, "procrustes"), "procrustes")
    undefined = page.square(find_cell(("net/0", "conv1", "net/0", "block2"), "direct"), "negative_mass")
    assert failed == (None, {"state": "failed", "error": ERROR})
    assert pending == (None, {"state": "pending"})
    assert undefined[0] is None
    assert (undefined[1]["state"], undefined[1]["flags"]) == ("undefined", "undefined")


def test_a_square_carries_images_rows_alignment_and_flags(page):
    _, note = page.square(find_cell(FLAGGED, "direct"), "residual")
    facts = {"num_fit": 200, "num_eval": 1000, "num_rows": 64_000, "alignment": "resized", "flags": FLAG}
    assert facts.items() <= note.items()
    assert (note["precision"], note["device"]) == ("fp32", "cpu")


def test_the_page_tells_networks_layers_and_cells(page):
    sweep = page.sweeps[SWEEP]
    assert [one["name"] for one in sweep["networks"]] == list(MODELS)
    assert [one["accuracy"] for one in sweep["networks"]] == [0.9, 0.89]
    assert [one["name"] for one in sweep["networks"][0]["layers"]] == list(LAYERS)
    assert [one["depth"] for one in sweep["networks"][0]["layers"]] == [0.0, 0.5, 1.0]
    assert sweep["cells"] == {"done": 214, "failed": 1, "pending": 1}
    assert (sweep["numEval"], sweep["numFit"], sweep["computed"]) == ([1000], [200], ["2026-01-02", "2026-01-02"])


def test_the_report_counts_heat_maps_missing_and_failed_cells(written):
    page, report = written
    assert report.num_panels == len(page.sweeps[SWEEP]["choices"]) * len(page.panels()) == 13 * 4
    assert (report.num_missing, report.num_failed) == (1, 1)
    assert str(report) == "52 heat maps, 1 cells missing, 1 failed"


def test_the_headline_counts_the_planted_violation_and_forgives_the_tie(page):
    found = {(one["network"], one["label"]): one for one in page.sweeps[SWEEP]["judgements"]}
    lost = {key: (one["num_violations"], one["violations"]) for key, one in found.items() if one["num_violations"]}
    assert lost == {("net/0", "task_loss"): (1, [f"{VIOLATION[3]} <- {VIOLATION[1]}"])}
    assert all(one["num_judged"] == 3 for one in found.values())
    assert found["net/1", "procrustes"]["num_missing"] == 1
    assert len(found) == len(MODELS) * 5
    for (_, label), one in found.items():
        choice = page.sweeps[SWEEP]["choices"][one["choice"]]
        assert (choice["label"], choice["isScore"]) == (label, True)


def test_the_page_counts_the_misleading_claims_of_each_pair_and_states_the_rule(store, page):
    with Catalog(store) as catalog:
        rows = catalog.ask(load_question("misleading"), {"all": "true"}).to_pylist()
    found = page.sweeps[SWEEP]["claims"]
    assert [(one["source"], one["target"]) for one in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for one in found:
        names = MODELS[one["source"]], MODELS[one["target"]]
        mine = [row for row in rows if (row["source_model"], row["target_model"]) == names]
        denied = [row for row in mine if row["misleading"]]
        counts = sum(row["claims"] for row in mine), len(denied), 0
        assert (one["num_claims"], one["num_misleading"], one["num_unchecked"]) == counts
        assert set(one["pairs"]) == {f"{row['source_layer']} -> {row['target_layer']}" for row in denied}
        choice = page.sweeps[SWEEP]["choices"][one["choice"]]
        assert (one["label"], choice["metric"]) == ("task_loss", "accuracy")
    assert f"{VIOLATION[1]} -> {VIOLATION[3]}" in found[0]["pairs"]
    assert "keeps at least 0.8 of the target's accuracy" in page.data["misleadingRule"]
    assert {"misled", "misled-rule", "misled-section"} <= {one.get("id") for _, one in page.elements}


@pytest.mark.parametrize(
    ("label", "metric", "seed", "direction"),
    [
        ("cka", "cka", None, "higher = more similar"),
        ("direct", "residual", None, "lower = more similar"),
        ("task_loss", "negative_mass", 1, "neither end is more similar"),
    ],
)
def test_every_choice_states_its_direction(page, label, metric, seed, direction):
    assert page.choice(label, metric, seed)["direction"] == direction


def test_the_best_source_of_each_target_layer_is_known_with_its_ties(store):
    grids = grids_of(store)

    def best(label, metric, pair, seed=None):
        choice = next(c for c in grids.choices if (c.label, c.metric, c.seed) == (label, metric, seed))
        panel = next(one for one in choice.panels if (one.source, one.target) == pair)
        return [(LAYERS[i], LAYERS[j]) for i, j in np.argwhere(panel.best(choice.higher_is_similar))]

    diagonal = [(layer, layer) for layer in LAYERS]
    assert best("direct", "residual", (0, 0)) == diagonal
    assert best("task_loss", "accuracy", (0, 0), 0) == [*diagonal[1:2], (VIOLATION[1], VIOLATION[3]), diagonal[2]]
    assert set(best("procrustes", "procrustes", (1, 1))) == {*diagonal, (TIE[1], TIE[3])}
    assert best("direct", "negative_mass", (0, 0)) == []


# What the page is -----------------------------------------------------------------------------------------------------


def test_the_page_stands_alone(page):
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "href", "action"} & set(attributes), (tag, attributes)
    assert "url(http" not in page.text["style"]
    assert "@import" not in page.text["style"]
    policy = next(one["content"] for _, one in page.elements if one.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_names_from_the_store_cannot_leave_their_place(store, tmp_path):
    def rename(row):
        return {key: HOSTILE.get(one, one) if isinstance(one, str) else one for key, one in row.items()}

    tables = {name: pa.Table.from_pylist(list(map(rename, table.to_pylist()))) for name, table in plan_tables().items()}
    cells = list(planned_cells())
    rows = [make_row(cell, metric, 0.5) for cell in cells[:-1] for metric in cell.metrics]
    rows.append(replace(make_row(cells[-1], None, None), status="failed", error="</script><script>alert(3)"))
    page, report = write_page(write_sweep(tmp_path, cells, rows, tables), tmp_path / "atlas.html")
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in page.elements)
    networks = page.sweeps[SWEEP]["networks"]
    assert [one["name"] for one in networks] == [HOSTILE["net/0"], HOSTILE["net/1"]]
    assert networks[0]["layers"][0]["name"] == HOSTILE["conv1"]
    assert report.num_failed == 1


@given(st.lists(st.text() | st.none() | st.floats(allow_nan=False, allow_infinity=False)))
def test_embedded_data_survive_and_hold_no_markup(content):
    text = embed(content)
    assert json.loads(text) == content
    assert not re.search(r"[<>&]|[^\x20-\x7e]", text)


def test_the_script_builds_text_never_markup():
    script = join_modules()
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|XMLHttp", script)


def test_every_module_of_the_page_is_joined_and_short():
    folder = files("stitchgrid.atlas").joinpath("page")
    lines = {path.name: len(path.read_text("utf-8").splitlines()) for path in folder.iterdir()}
    assert set(lines) == {f"{name}.js" for name in SERVED}
    assert max(lines.values()) <= 200


def test_the_page_uses_the_same_viridis_as_the_figures():
    script = files("stitchgrid.atlas").joinpath("page", "colours.js").read_text("utf-8")
    stops = re.findall(r'"(#[0-9a-f]{6})"', script.partition("const VIRIDIS")[2].partition("]")[0])
    ours = np.array([mpl.colors.to_rgb(stop) for stop in stops])
    at = np.linspace(0, 1, 256)
    mixed = np.stack([np.interp(at, np.linspace(0, 1, len(stops)), ours[:, k]) for k in range(3)], axis=1)
    np.testing.assert_allclose(mixed, mpl.colormaps["viridis"](at)[:, :3], atol=0.06)


def test_the_same_store_gives_the_same_bytes(store, tmp_path):
    for name in ("a", "b"):
        write_page(store, tmp_path / f"{name}.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


# Unusual sweeps -------------------------------------------------------------------------------------------------------


def test_several_sweeps_share_a_page(tmp_path):
    make_synthetic_store(tmp_path / "grid", sweep="first")
    store = make_synthetic_store(tmp_path / "grid", sweep="second").store
    page, report = write_page(store, tmp_path / "atlas.html", ["second", "first", "second"])
    assert list(page.sweeps) == ["second", "first"]
    assert page.sweeps["first"]["choices"] == page.sweeps["second"]["choices"]
    assert (report.num_sweeps, report.num_panels) == (2, 104)


def test_a_sweep_of_which_nothing_is_computed_is_all_missing(tmp_path):
    cells = list(planned_cells())
    page, report = write_page(write_sweep(tmp_path, cells, []), tmp_path / "atlas.html")
    sweep = page.sweeps[SWEEP]
    assert (sweep["cells"], sweep["computed"], sweep["numEval"]) == ({"pending": len(cells)}, None, [])
    assert all(np.isnan(page.values(one)).all() for one in sweep["choices"])
    assert {one["num_judged"] for one in sweep["judgements"]} == {0}
    assert page.choice("direct", "residual")["direction"] == "lower = more similar"
    assert report.num_missing == len(cells)


def test_a_store_without_sweeps_gives_a_page_that_says_so(tmp_path):
    page, report = write_page(Store.open(tmp_path, create=True), tmp_path / "atlas.html")
    assert page.sweeps == {}
    assert "The store holds no planned sweep" in page.text["script"]
    assert report.num_panels == 0


def test_an_unknown_sweep_is_refused_with_the_nearest_names(store, tmp_path):
    with (
        Catalog(store) as catalog,
        pytest.raises(QueryError, match=r"no planned sweep 'sinthetic'.*did you mean 'synthetic'"),
    ):
        write_atlas(catalog, ["sinthetic"], tmp_path / "atlas.html")
    assert not (tmp_path / "atlas.html").exists()


def test_a_page_that_cannot_be_written_is_named(store, tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*atlas\.html: No such file or directory; name another"):
        write_page(store, tmp_path / "nowhere" / "atlas.html")


def test_pairs_that_were_not_compared_make_no_panel(tmp_path):
    cells = [cell for cell in planned_cells() if cell.source_model == cell.target_model]
    rows = [make_row(cell, metric, 0.5) for cell in cells for metric in cell.metrics]
    page, _ = write_page(write_sweep(tmp_path, cells, rows), tmp_path / "atlas.html")
    assert list(page.panels()) == [(0, 0), (1, 1)]


def test_a_layer_pair_outside_the_sweep_is_absent(tmp_path):
    gone = find_cell(("net/0", "conv1", "net/1", "block1"), "cka")
    cells = [cell for cell in planned_cells() if cell.cell_id != gone.cell_id]
    store = write_sweep(tmp_path, cells, [make_row(cell, metric, 0.5) for cell in cells for metric in cell.metrics])
    page, _ = write_page(store, tmp_path / "atlas.html")
    assert page.square(gone, "cka") == (None, {"state": "absent"})


@pytest.mark.parametrize(("value", "shown"), [(math.inf, math.inf), (-math.inf, -math.inf), (math.nan, None)])
def test_values_that_are_no_numbers_are_kept_apart(tmp_path, value, shown):
    cell, other = find_cell(PENDING, "direct"), find_cell(FLAGGED, "direct")
    rows = [make_row(cell, "residual", value), make_row(other, "residual", 2.0)]
    page, _ = write_page(write_sweep(tmp_path, [cell, other], rows), tmp_path / "atlas.html")
    found, note = page.square(cell, "residual")
    assert found == shown
    assert note["state"] == ("undefined" if shown is None else "value")
    assert page.choice("direct", "residual")["scale"]["high"] == 2.0


def test_entries_that_differ_in_samples_alone_are_two_choices(tmp_path):
    """The second entry's cells have ids of their own; one of them is missing and takes the place left over."""
    cells = [cell for cell in planned_cells() if cell.matcher == "cka"]
    again = {cell.cell_id: cell.cell_id[::-1] for cell in cells}
    tables = plan_tables()
    planned = [row for row in tables["cells"].to_pylist() if row["cell_id"] in again]
    twins = [{**row, "cell_id": again[row["cell_id"]]} for row in planned]
    tables["cells"] = pa.Table.from_pylist(planned + twins)
    lost = find_cell(("net/0", "conv1", "net/1", "block1"), "cka")
    rows = [make_row(cell, "cka", 0.25) for cell in cells if cell != lost]
    rows += [make_row(cell, "cka", 0.75, cell_id=again[cell.cell_id], num_eval=500) for cell in cells]
    store = Store.open(tmp_path, create=True)
    store.write_plan(SWEEP, store.write_job(SWEEP, {}), **tables, info={})
    store.write_part("shard", rows)
    page, _ = write_page(store, tmp_path / "atlas.html")
    values = {one["label"]: page.values(one) for one in page.sweeps[SWEEP]["choices"]}
    assert set(values) == {"cka (samples 500)", "cka (samples 1000)"}
    assert set(values["cka (samples 500)"]) == {0.75}
    left = values["cka (samples 1000)"]
    assert set(left[~np.isnan(left)]) == {0.25}
    assert np.isnan(left).sum() == 1


# Packing --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(min_value=1e-29, max_value=1e29) | st.just(0.0), min_size=1))
def test_numbers_of_large_pages_keep_their_first_digits(values):
    kept = to_digits(np.array(values))
    assert kept.dtype == np.float32
    for value, one in zip(values, kept, strict=True):
        assert float(f"{one:.{DIGITS}g}") == pytest.approx(
            float(f"{value:.{DIGITS}g}"), rel=1.1 * 10 ** (1 - DIGITS) / 10
        )


def test_numbers_that_float32_cannot_hold_stay_as_they_are():
    arrays = Arrays()
    values = np.array([1e-40, 3e38, np.nan, -np.inf, 0.1])
    assert arrays.add_numbers(values, many=True) == 0
    assert arrays.add_numbers(np.array([0.1]), many=True) == 1
    content = arrays.content()
    assert content["arrays"] == [("f8", 5), ("f4", 1)]
    np.testing.assert_array_equal(read_arrays(content)[0], values)


def test_the_same_array_is_kept_once():
    arrays = Arrays()
    assert [arrays.add_codes(np.array(codes)) for codes in ([1, 2], [300], [1, 2])] == [0, 1, 0]
    assert [found.tolist() for found in read_arrays(arrays.content())] == [[1, 2], [300]]


# Folding, answers, provenance -----------------------------------------------------------------------------------------


def test_layers_fold_into_stages_where_a_page_would_hold_too_many_cells(store, tmp_path, monkeypatch):
    monkeypatch.setattr("stitchgrid.atlas.reading.MOST_CELLS", 100)
    page, _ = write_page(store, tmp_path / "atlas.html")
    sweep = page.sweeps[SWEEP]
    assert sweep["fold"] == {"num_layers": 2, "num_cells": 216, "most_cells": 100}
    assert [[one["name"] for one in network["layers"]] for network in sweep["networks"]] == [[LAYERS[0], LAYERS[2]]] * 2
    kept = [(i, j) for i in LAYERS[::2] for j in LAYERS[::2]]
    expected = [
        value_of(find_cell((f, i, g, j), "direct"), "residual") for f in MODELS for g in MODELS for i, j in kept
    ]
    assert page.values(page.choice("direct", "residual")).tolist() == expected


def test_the_last_layer_of_each_network_is_shown_however_many_cells_that_makes(store, tmp_path, monkeypatch):
    monkeypatch.setattr("stitchgrid.atlas.reading.MOST_CELLS", 1)
    page, _ = write_page(store, tmp_path / "atlas.html")
    sweep = page.sweeps[SWEEP]
    assert sweep["fold"] == {"num_layers": len(LAYERS), "num_cells": 216, "most_cells": 1}
    assert [[one["name"] for one in network["layers"]] for network in sweep["networks"]] == [[LAYERS[-1]]] * 2


def test_every_layer_is_shown_where_a_page_can_hold_the_cells(page):
    assert page.sweeps[SWEEP]["fold"] is None


def test_the_page_holds_the_answers_of_the_view_and_every_check(tmp_path):
    store = drawn(5).write(tmp_path)
    page, _ = write_page(store, tmp_path / "atlas.html")
    sweep, arrays = page.sweeps["planted"], page.arrays["planted"]
    found = sweep["answers"]
    with Catalog(store) as catalog:
        rows = catalog.query(
            "from answers order by target_model, target_index, source_model, matcher, seed"
        ).to_pylist()
    layers = [[layer["name"] for layer in network["layers"]] for network in sweep["networks"]]
    columns = {name: arrays[number] for name, number in found.items() if isinstance(number, int)}
    ends = [0, *columns["candidateEnds"].tolist()]
    assert len(columns["target"]) == len(rows) > 20
    for n, row in enumerate(rows):
        source, target = (sweep["networks"][columns[side][n]]["name"] for side in ("source", "target"))
        names = layers[columns["source"][n]]
        assert (source, target) == (row["source_model"], row["target_model"])
        assert layers[columns["target"][n]][columns["targetLayer"][n]] == row["target_layer"]
        assert names[columns["sourceLayer"][n]] == row["source_layer"]
        assert sweep["choices"][columns["choice"][n]]["matcher"] == row["matcher"]
        assert found["verdicts"][columns["verdict"][n]] == row["verdict"]
        for name in ("margin", "margin_low", "margin_high", "p", "untrained_value"):
            assert (None if math.isnan(columns[name][n]) else columns[name][n]) == row[name]
        assert [names[layer] for layer in columns["candidates"][ends[n] : ends[n + 1]]] == (row["candidates"] or [])
        for m, check in enumerate(row["checks"]):
            place = n * len(found["names"]) + m
            word = found["outcomes"][columns["checks"][place]]
            assert found["texts"][columns["details"][place]] == check["detail"]
            assert {"passed": True, "failed": False}.get(word) == check["passed"]


def test_evidence_stands_beside_the_values(tmp_path):
    store = drawn(5).write(tmp_path)
    page, _ = write_page(store, tmp_path / "atlas.html")
    choice, arrays = page.choice("direct", "residual", sweep="planted"), page.arrays["planted"]
    low, high, null_low, null_high = (arrays[choice["evidence"][name]] for name in EVIDENCE)
    values = page.values(choice, "planted")
    assert np.isfinite(values).all()
    np.testing.assert_allclose(high - low, 0.02)
    assert (null_low < null_high).all()


def test_the_page_tells_where_its_values_come_from(page):
    found = page.sweeps[SWEEP]["provenance"]
    assert json.loads(found["job"])["job"] == {"name": SWEEP}
    [run] = found["runs"]
    assert (run["version"], run["precision"], run["device"]) == ("0.1.0", "fp32", "cpu")
    assert [(one["status"], one["error"], one["num_cells"]) for one in found["failures"]] == [("failed", ERROR, 1)]
    assert FLAG in {one["flag"] for one in found["flags"]}


# Scales and blocks ----------------------------------------------------------------------------------------------------


def test_bounded_metrics_have_the_same_scale_whatever_the_data():
    for values in ([0.2, 0.3], [0.9, 1.0], []):
        scale = choose_scale(UNIT, np.array(values, dtype=float))
        assert (scale.low, scale.high, scale.is_log) == (0.0, 1.0, False)
    assert choose_scale(UNIT, np.array([-7.0, 0.5])).clips_low


def test_a_long_tail_gets_a_logarithmic_scale_that_says_what_it_clips():
    values = np.array([0.0, *np.geomspace(0.5, 500, 200), 1e9])
    scale = choose_scale(FROM_ZERO, values)
    assert scale.is_log
    assert scale.high < 1e3
    assert scale.clips_low
    assert scale.clips_high
    assert not choose_scale(FROM_ZERO, np.linspace(0, 1, 50)).is_log


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30), st.sampled_from([FROM_ZERO, UNIT, OPEN]))
@example([1.7976931348623157e308, -9.9792015476736e291], OPEN)
def test_positions_rise_with_the_values_and_stay_on_the_scale(values, ends):
    values = np.array(sorted(values, key=lambda value: (math.isnan(value), value)), dtype=float)
    with np.errstate(over="ignore", invalid="ignore"):
        places = choose_scale(ends, values).position(values)
    found = places[~np.isnan(values)]
    assert np.isnan(places[np.isnan(values)]).all()
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= 0).all()


def test_a_target_layer_without_values_has_no_best_source():
    values_ST = np.array([[np.nan, 1.0, np.inf], [np.nan, np.nan, np.inf]])
    panel = Panel(source=0, target=0, values_ST=values_ST, notes_ST=np.zeros((2, 3), dtype=np.int64))
    assert panel.best(True).tolist() == [[False, True, True], [False, False, True]]
    assert not panel.best(None).any()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), unique=True))
def test_blocks_hold_every_pair_and_share_no_network_on_one_side(pairs):
    blocks = connected(pairs)
    assert all(any(f in sources and g in targets for sources, targets in blocks) for f, g in pairs)
    for side in (0, 1):
        networks = [network for block in blocks for network in block[side]]
        assert sorted(networks) == sorted({pair[side] for pair in pairs})
