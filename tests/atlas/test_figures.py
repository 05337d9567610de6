"""Figures for papers: as wide as asked, legible, with real fonts; captions and numbers are the store's."""

import csv
import re
import struct
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from helpers_answers import drawn
from helpers_figures import (
    DIVERGED,
    LOST,
    VALUE,
    WAITS,
    all_pairs,
    assert_legible,
    make_choice,
    make_grids,
    make_network,
)
from helpers_store import FAILED, SWEEP, find_cell, make_row, plan_tables, planned_cells, value_of
from test_atlas import HOSTILE, grids_of, write_sweep

from stitchgrid.atlas import FigureOptions, draw_figures, write_atlas
from stitchgrid.atlas.figures.best import draw_best_sources, find_best_sources
from stitchgrid.atlas.figures.captions import caption_heatmap
from stitchgrid.atlas.figures.heatmap import draw_heatmap
from stitchgrid.atlas.figures.options import select
from stitchgrid.atlas.figures.profile import draw_profile
from stitchgrid.atlas.figures.scatter import MisleadingPairs, draw_scatter, judge
from stitchgrid.atlas.figures.scores import find_scores
from stitchgrid.atlas.figures.style import drawing, fit, ticks, width_of
from stitchgrid.atlas.figures.writing import unique_name
from stitchgrid.atlas.scales import Scale
from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.errors import InputError

EVERY = ("pdf", "svg", "png")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return a store with intervals, shuffled images, untrained twins and answers."""
    return drawn(5).write(tmp_path_factory.mktemp("planted"))


@pytest.fixture(autouse=True)
def fonts(request):
    """Let fonts be quick, but where files are looked at or names are hostile."""
    if "of_pair" not in request.fixturenames and "hostile" not in request.node.name:
        request.getfixturevalue("quick_fonts")


@pytest.fixture(scope="module")
def of_pair(planted, tmp_path_factory):
    """Return every kind of figure of one pair, in every format, as paths by name."""
    folder = tmp_path_factory.mktemp("figures")
    options = FigureOptions(pair="a,b", width=3.25, formats=EVERY, only=("direct", "task_loss"))
    draw_figures([grids_of(planted, "planted")], folder, options)
    return {path.name: path for path in folder.iterdir()}


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_pair_has_every_kind_of_figure_with_caption_and_numbers(of_pair):
    stems = {name.rpartition(".")[0] for name in of_pair}
    assert stems == {
        *(
            f"planted-{kind}-a-b-{score}"
            for kind in ("heatmap", "profile")
            for score in ("direct-residual", "task_loss-accuracy")
        ),
        "planted-best-sources-a-b",
        "planted-scatter-a-b-direct-residual-task_loss-accuracy",
    }
    assert set(of_pair) == {f"{stem}.{suffix}" for stem in stems for suffix in (*EVERY, "txt", "csv")}


def test_figures_are_exactly_as_wide_as_asked(of_pair):
    pdfs = [path.read_bytes() for name, path in of_pair.items() if name.endswith(".pdf")]
    pngs = [path.read_bytes() for name, path in of_pair.items() if name.endswith(".png")]
    for data in pdfs:
        box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", data)
        assert float(box[1]) == 3.25 * 72
    for data in pngs:
        width, _ = struct.unpack(">II", data[16:24])
        at = data.index(b"pHYs") + 4
        per_metre, _ = struct.unpack(">II", data[at : at + 8])
        assert width == 975
        assert width / per_metre / 0.0254 == pytest.approx(3.25, abs=1e-3)
    for name, path in of_pair.items():
        if name.endswith(".svg"):
            assert ET.parse(path).getroot().attrib["width"] == f"{3.25 * 72:g}pt"


def test_fonts_are_truetype_and_text_stays_text(of_pair):
    for name, path in of_pair.items():
        if name.endswith(".pdf"):
            data = path.read_bytes()
            assert b"/Type3" not in data
            assert b"/FontFile2" in data
        if name.endswith(".svg"):
            texts = " ".join(ET.parse(path).getroot().itertext())
            assert "similar" in texts or "depth in a" in texts


def test_the_same_store_gives_the_same_bytes(planted, of_pair, tmp_path):
    options = FigureOptions(pair="a,b", width=3.25, formats=EVERY, only=("direct", "task_loss"))
    draw_figures([grids_of(planted, "planted")], tmp_path, options)
    for name, path in of_pair.items():
        assert (tmp_path / name).read_bytes() == path.read_bytes(), name


def test_without_a_choice_each_matcher_has_the_score_that_ranks_layers(store, tmp_path):
    drawn_ = draw_figures([grids_of(store)], tmp_path, FigureOptions())
    assert [path.name for path in drawn_] == [
        f"{SWEEP}-heatmap-{name}.pdf"
        for name in ("direct-residual", "task_loss-accuracy", "cka-cka", "pwcca-pwcca", "procrustes-procrustes")
    ]


def test_names_of_files_are_safe_short_and_unique():
    taken = set()
    names = [
        unique_name(words, taken)
        for words in (("s", "a/b"), ("s", "a b"), ("S", "A_b"), ("../x",), ("層",), ("n" * 400,))
    ]
    assert names[:5] == ["s-a_b", "s-a_b-2", "S-A_b-3", "_x", "_"]
    assert len(names[5]) < 220


# Numbers and captions -------------------------------------------------------------------------------------------------


def test_the_numbers_of_a_heat_map_are_those_of_the_store(store, tmp_path):
    draw_figures([grids_of(store)], tmp_path, FigureOptions(only=("cka", "task_loss.accuracy")))
    rows = rows_of(tmp_path / f"{SWEEP}-heatmap-cka-cka.csv")
    assert len(rows) == 36
    for row in rows:
        cell = find_cell(
            tuple(row[f"{side}_{what}"] for side in ("source", "target") for what in ("model", "layer")), "cka"
        )
        is_failed = cell.pair == FAILED
        assert row["value"] == ("" if is_failed else repr(value_of(cell, "cka")))
        assert row["state"] == ("failed" if is_failed else "value")
    for row in rows_of(tmp_path / f"{SWEEP}-heatmap-task_loss-accuracy.csv"):
        pair = tuple(row[f"{side}_{what}"] for side in ("source", "target") for what in ("model", "layer"))
        seeds = [one for one in planned_cells() if (one.pair, one.matcher) == (pair, "task_loss")]
        assert float(row["value"]) == pytest.approx(np.mean([value_of(one, "accuracy") for one in seeds]), abs=1e-15)
        assert row["num_seeds"] == "2"
    caption = (tmp_path / f"{SWEEP}-heatmap-cka-cka.txt").read_text()
    assert caption.startswith("Heat map of cka for 4 ordered pairs of 2 networks; rows are source layers")
    for part in (
        "higher is more similar",
        "a cross marks failures",
        "Of 36 cells, 1 failed",
        "1,000 evaluation images",
        "fp32",
    ):
        assert part in caption
    assert "Means over seeds 0 and 1." in (tmp_path / f"{SWEEP}-heatmap-task_loss-accuracy.txt").read_text()


def test_the_numbers_of_a_profile_hold_interval_twin_and_shuffled_images(planted, of_pair):
    with Catalog(planted) as catalog:
        found = catalog.query(
            "select source_layer, target_layer, value, low, high, "
            "list_aggregate(\"null\", 'quantile_cont', 0.05) as null_low "
            "from results where source_model = 'a' and target_model = 'b' and matcher = 'direct' "
            "and metric = 'residual'"
        ).to_pylist()
        twins = catalog.query(
            "select source_layer, target_layer, value from results where source_model = 'a@untrained' and "
            "target_model = 'b' and matcher = 'direct' and metric = 'residual'"
        ).to_pylist()
    rows = {
        (row["source_layer"], row["target_layer"]): row
        for row in rows_of(of_pair["planted-profile-a-b-direct-residual.csv"])
    }
    assert len(rows) == len(found) == len(twins) == 16
    for one in found:
        row = rows[one["source_layer"], one["target_layer"]]
        for name, column in (("value", "value"), ("low", "low"), ("high", "high"), ("null_low", "shuffled_low")):
            assert row[column] == ("" if one[name] is None else repr(one[name]))
    for one in twins:
        assert rows[one["source_layer"], one["target_layer"]]["untrained"] == repr(one["value"])


def test_the_numbers_of_best_sources_are_the_answers(planted, of_pair):
    with Catalog(planted) as catalog:
        found = catalog.query(
            "from answers where source_model = 'a' and target_model = 'b' and matcher in ('direct', 'task_loss')"
        ).to_pylist()
    rows = rows_of(of_pair["planted-best-sources-a-b.csv"])
    told = {(row["matcher"], row["seed"], row["target_layer"]): (row["source_layer"], row["verdict"]) for row in rows}
    assert len(rows) == len(found)
    for one in found:
        seed = "" if one["seed"] is None else str(one["seed"])
        assert told[one["matcher"], seed, one["target_layer"]] == (one["source_layer"], one["verdict"])


def test_misleading_cells_of_a_scatter_are_those_of_the_query(planted, of_pair):
    with Catalog(planted) as catalog:
        from stitchgrid.catalog import load_question

        found = catalog.ask(load_question("misleading"), {"sweep": "planted"}).to_pylist()
    misled = {
        (one["source_layer"], one["target_layer"])
        for one in found
        if (one["source_model"], one["target_model"]) == ("a", "b")
    }
    rows = rows_of(of_pair["planted-scatter-a-b-direct-residual-task_loss-accuracy.csv"])
    assert {(row["source_layer"], row["target_layer"]) for row in rows if row["misleading"] == "true"} == misled
    assert misled


def test_seeds_that_diverged_are_left_out_of_means():
    networks = [make_network("a", 2), make_network("b", 2)]
    notes = {(0, 1): np.array([[DIVERGED, DIVERGED], [VALUE, WAITS]])}
    first = make_choice(networks, [(0, 1)], seed=0, values={(0, 1): [[9.0, 9.0], [0.2, 0.0]]}, notes=notes)
    other = np.array([[VALUE, DIVERGED], [VALUE, LOST]])
    second = make_choice(networks, [(0, 1)], seed=1, values={(0, 1): [[0.5, 7.0], [0.4, 0.0]]}, notes={(0, 1): other})
    grids = make_grids(networks, [first, second])
    [score] = find_scores(grids.choices)
    found = score.averaged((0, 1), grids.notes)
    np.testing.assert_allclose(found.values_ST, [[0.5, 8.0], [0.3, np.nan]])
    np.testing.assert_allclose(found.low_ST, [[0.5, 7.0], [0.2, np.nan]])
    assert found.num_seeds_ST.tolist() == [[1, 2], [2, 0]]
    assert found.states_ST.tolist() == [["value", "value"], ["value", "failed"]]
    assert found.panel.best(False).tolist() == [[False, False], [True, False]]
    assert found.num_by_state == {"diverged": 3, "failed": 1, "pending": 1, "value": 3}


# Looks ----------------------------------------------------------------------------------------------------------------


def heatmap_of(networks, pairs, width, **changes):
    grids = make_grids(networks, [make_choice(networks, pairs, **changes)])
    [score] = find_scores(grids.choices)
    found = {pair: score.averaged(pair, grids.notes) for pair in pairs}
    return grids, score, found, draw_heatmap(grids, score, found, width)


@pytest.mark.parametrize("num_layers", [1, 3, 60])
@pytest.mark.parametrize("width", [3.25, 6.75])
def test_names_of_layers_are_legible_however_many_there_are(num_layers, width):
    networks = [make_network("resnet50/0", num_layers), make_network("a_long_name_of_a_network/17", num_layers)]
    with drawing():
        _, _, _, (figure, layout) = heatmap_of(networks, [(0, 1)], width)
        assert_legible(figure)
    assert figure.get_figwidth() == width
    assert (layout.places[0].rows.num_left_out > 0) == (num_layers == 60 and width == 3.25)


@pytest.mark.parametrize("sizes", [[9] * 6, [2, 3, 4, 5] * 8, [1, 17, 60]])
def test_names_of_networks_are_legible_however_many_there_are(sizes):
    networks = [make_network(f"network_with_a_name/{n}", size) for n, size in enumerate(sizes)]
    with drawing():
        grids, score, found, (figure, layout) = heatmap_of(networks, all_pairs(networks), 3.25)
        assert_legible(figure)
    caption = caption_heatmap(grids, score, found, layout)
    assert "Some names are left out for lack of room" in caption
    assert "Frames mark comparisons of a network with itself." in caption


def test_networks_that_were_not_compared_stand_in_blocks_of_their_own():
    networks = [make_network(f"n{n}", 4) for n in range(4)]
    with drawing():
        _, _, _, (figure, layout) = heatmap_of(networks, [(n, n) for n in range(4)], 6.75)
        assert_legible(figure)
    assert len(layout.places) == 4
    assert len({place.bottom for place in layout.places}) < 4


def test_a_heat_map_hatches_what_is_missing_and_crosses_what_failed():
    networks = [make_network("a", 3), make_network("b", 3)]
    notes = {(0, 1): np.array([[VALUE, LOST, VALUE], [WAITS, VALUE, VALUE], [VALUE, VALUE, DIVERGED]])}
    with drawing():
        _, _, found, (figure, _) = heatmap_of(networks, [(0, 1)], 3.25, notes=notes)
    axes = figure.axes[0]
    [gaps] = [patch for patch in axes.patches if patch.get_hatch()]
    corners = gaps.get_path().vertices.reshape(-1, 5, 2)[:, 0]
    assert sorted(map(tuple, corners.tolist())) == [(0, 1), (1, 0)]
    marks = {kind: [line.get_xydata() for line in axes.lines if line.get_marker() == kind] for kind in "xo"}
    assert np.concatenate(marks["x"]).tolist() == [[1.5, 0.5]]
    best = found[0, 1].panel.best(False)
    assert not best[2, 2]
    i, j = np.nonzero(best)
    assert sorted(map(tuple, np.concatenate(marks["o"]).tolist())) == sorted(zip(j + 0.5, i + 0.5, strict=True))
    [mesh] = axes.collections
    np.testing.assert_allclose(mesh.get_array().filled(np.nan), found[0, 1].values_ST)


@pytest.mark.parametrize("higher", [True, False, None])
def test_the_colour_bar_ends_with_more_similar(higher):
    networks = [make_network("a", 3), make_network("b", 3)]
    with drawing():
        _, _, _, (figure, _) = heatmap_of(networks, [(0, 1)], 3.25, higher=higher)
    left, right = figure.axes[-1].get_xlim()
    assert (left > right) == (higher is False)
    assert ("more similar →" in [text.get_text() for text in figure.texts]) == (higher is not None)


@pytest.mark.parametrize("num_layers", [1, 4, 60])
@pytest.mark.parametrize("width", [2.0, 3.25, 6.75])
def test_lines_and_dots_are_legible(num_layers, width):
    networks = [make_network("resnet50/0", num_layers), make_network("a_long_name_of_a_network/17", num_layers)]
    shape = num_layers, num_layers
    evidence = {
        (0, 1): {
            "low": np.full(shape, 0.1),
            "high": np.full(shape, 0.9),
            "null_low": np.full(shape, 0.5),
            "null_high": np.full(shape, 1e6),
        }
    }
    choices = [
        make_choice(networks, [(0, 1)], evidence=evidence),
        *(
            make_choice(
                networks, [(0, 1)], matcher="task_loss", metric="ood_mahalanobis_auroc", seed=n, is_trained=True
            )
            for n in (0, 1)
        ),
    ]
    grids = make_grids(networks, choices)
    scores = find_scores(choices)
    found = [score.averaged((0, 1), grids.notes) for score in scores]
    judged = MisleadingPairs(label="task_loss", misleading_ST=np.eye(num_layers, dtype=bool), num_claims=num_layers)
    with drawing():
        for score, one in zip(scores, found, strict=True):
            assert_legible(draw_profile(score, one, found[0], *networks, width))
        figure = draw_scatter(tuple(scores), tuple(found), judged, 0.9, width)
        assert_legible(figure)
    assert figure.get_figwidth() == width


def test_lines_of_best_sources_are_legible(planted):
    grids = grids_of(planted, "planted")
    scores = select([grids], FigureOptions(pair="a,b"))[0].scores
    found = find_best_sources(grids, scores, (0, 1))
    with drawing():
        for width in (2.0, 3.25, 6.75):
            assert_legible(draw_best_sources(found, "a", "b" * 200, width))


@pytest.mark.parametrize(
    ("scale", "shown"),
    [
        (Scale(low=0.0, high=1.0), [0.0, 0.25, 0.5, 0.75, 1.0]),
        (Scale(low=0.01, high=10.0, is_log=True), [0.01, 0.1, 1.0, 10.0]),
        (Scale(low=1.1, high=1.9, is_log=True), [1.2, 1.4, 1.6, 1.8]),
        (Scale(low=1e-12, high=1e6, is_log=True), [1e-12, 1e-8, 1e-4, 1.0, 1e4]),
    ],
)
def test_axes_have_few_round_numbers(scale, shown):
    assert ticks(scale) == pytest.approx(shown)


def test_names_are_cut_from_the_left_to_the_room_there_is():
    assert fit("layer4.1", 5, 7) == "layer4.1"
    cut = fit("encoder.layers.encoder_layer_11", 0.5, 6)
    assert cut.startswith("…")
    assert cut.endswith("11")
    assert width_of(cut, 6) <= 0.5
    assert fit("two\nlines", 5, 7) == "two\\nlines"


# Hostile names --------------------------------------------------------------------------------------------------------


def test_hostile_names_stay_text_in_every_format(tmp_path):
    def rename(row):
        return {key: HOSTILE.get(one, one) if isinstance(one, str) else one for key, one in row.items()}

    tables = {name: pa.Table.from_pylist(list(map(rename, table.to_pylist()))) for name, table in plan_tables().items()}
    cells = list(planned_cells())
    rows = [make_row(cell, metric, 0.5) for cell in cells[:-1] for metric in cell.metrics]
    store = write_sweep(tmp_path / "grid", cells, rows, tables)
    pair = f"{HOSTILE['net/0']},{HOSTILE['net/1']}"
    options = FigureOptions(pair=pair, formats=EVERY, only=("direct", "cka"))
    figures = draw_figures([grids_of(store)], tmp_path / "figures", options)
    assert len(figures) >= 5
    for path in figures:
        assert path.parent == tmp_path / "figures"
        assert re.fullmatch(r"[A-Za-z0-9._-]+\.pdf", path.name)
        elements = list(ET.parse(path.with_suffix(".svg")).iter())
        tags = {one.tag.rpartition("}")[2] for one in elements}
        assert not tags & {"script", "img", "foreignObject", "a"}
        links = [value for one in elements for key, value in one.attrib.items() if key.endswith("href")]
        assert all(link.startswith(("#", "data:image/png;")) for link in links)
        assert {row["source_model"] for row in rows_of(path.with_suffix(".csv")) if "source_model" in row} <= {
            HOSTILE["net/0"]
        }
    heat = next(path for path in figures if "heatmap" in path.name).with_suffix(".svg")
    assert HOSTILE["conv1"] in " ".join(ET.parse(heat).getroot().itertext())


# What is asked for ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--only", "ckaa"), r"there is no score 'ckaa'; did you mean 'cka'\?"),
        (("--only", "direct.residul"), r"there is no score 'direct\.residul'; did you mean 'direct\.residual'\?"),
        (("--pair", "net/0"), r"a pair is SOURCE,TARGET, got 'net/0'"),
        (("--pair", "net/0,nett/1"), r"there is no network 'nett/1'; did you mean 'net/1'\?"),
        (("--width", "0.5"), r"1 to 20 inches wide, got 0\.5"),
        (("--width", "nan"), r"1 to 20 inches wide, got nan"),
        (("--format", "pfd"), r"there is no format 'pfd' for figures; did you mean 'pdf'\?"),
        (("--format", ","), r"a figure needs a format: pdf, svg, png"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(store, tmp_path, words, message):
    out = tmp_path / "atlas.html"
    found = run("atlas", "--store", store.uri, "--out", out, "--figures", tmp_path / "figures", *words)
    assert found.exit_code == 2
    assert re.search(message, found.stderr)
    assert list(tmp_path.iterdir()) == []


def test_options_of_figures_need_a_folder(store, tmp_path):
    found = run("atlas", "--store", store.uri, "--out", tmp_path / "atlas.html", "--pair", "net/0,net/1")
    assert found.exit_code == 2
    assert "--pair needs figures; name a folder for them with --figures DIR." in found.stderr
    found = run("atlas", "--figures", "one.PDF", "--store", store.uri)
    assert found.exit_code == 2
    assert (
        "--figures must name a folder, got 'one.PDF'; --format chooses the formats of the files in it." in found.stderr
    )


def test_a_pair_that_was_not_compared_is_refused(tmp_path):
    cells = [cell for cell in planned_cells() if cell.source_model == cell.target_model]
    rows = [make_row(cell, metric, 0.5) for cell in cells for metric in cell.metrics]
    grids = grids_of(write_sweep(tmp_path / "grid", cells, rows))
    with pytest.raises(
        InputError, match="'net/0,net/1': no sweep compares these two networks in this order; did you mean 'net/"
    ):
        select([grids], FigureOptions(pair="net/0,net/1"))


def test_names_with_commas_make_pairs_too():
    networks = [make_network("a,b", 2), make_network("c,d", 2)]
    grids = make_grids(networks, [make_choice(networks, [(0, 1)])])
    assert select([grids], FigureOptions(pair="a,b,c,d"))[0].pair == (0, 1)


def test_only_takes_matchers_metrics_and_both(store):
    grids = grids_of(store)

    def chosen(*only):
        return [f"{one.matcher}.{one.metric}" for one in select([grids], FigureOptions(only=only))[0].scores]

    assert chosen("cka", "direct") == ["cka.cka", "direct.residual"]
    assert chosen("accuracy") == ["direct.accuracy", "task_loss.accuracy"]
    assert chosen("pwcca.pwcca_reverse", "pwcca") == ["pwcca.pwcca_reverse", "pwcca.pwcca"]


def test_sweeps_without_the_pair_are_left_out(store, planted):
    found = select([grids_of(store), grids_of(planted, "planted")], FigureOptions(pair="a,b", only=("direct",)))
    assert [one.grids.sweep for one in found] == ["planted"]


def test_the_command_says_what_a_pair_adds(store, tmp_path):
    found = run(
        "atlas", "--store", store.uri, "--out", tmp_path / "a.html", "--figures", tmp_path / "f", "--only", "cka"
    )
    assert found.exit_code == 0
    assert found.stdout.endswith(", 1 figure\n")
    assert "--pair SOURCE,TARGET draws the profile, best sources and scatter plot" in found.stderr


def test_a_folder_that_cannot_be_made_is_named(store, tmp_path):
    (tmp_path / "file").write_text("")
    with Catalog(store) as catalog, pytest.raises(InputError, match=r"cannot write .*file.*; name another place"):
        write_atlas(catalog, [SWEEP], tmp_path / "a.html", figures=tmp_path / "file" / "figures")


def test_claims_of_another_pair_mark_nothing(planted):
    grids = replace(grids_of(planted, "planted"), claims=())
    scores = select([grids], FigureOptions(pair="a,b", only=("direct", "task_loss")))[0].scores
    judged = judge(grids, *scores, (0, 1), (4, 4))
    assert judged.label is None
    assert not judged.misleading_ST.any()


def test_a_users_own_settings_of_matplotlib_change_nothing(of_pair, planted, tmp_path):
    import matplotlib as mpl

    options = FigureOptions(pair="a,b", width=3.25, formats=("svg",), only=("direct", "task_loss"))
    with mpl.rc_context({"font.size": 20, "svg.fonttype": "path", "savefig.bbox": "tight", "text.usetex": False}):
        draw_figures([grids_of(planted, "planted")], tmp_path, options)
    for path in tmp_path.glob("*.svg"):
        assert path.read_bytes() == of_pair[path.name].read_bytes()
