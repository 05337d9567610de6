"""The atlas in a browser: numbers and colours are the store's, each view draws, each interaction works."""

import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from helpers_answers import TWIN, drawn
from helpers_page import hash_of, hash_parts, ready, settle
from helpers_store import (
    ERROR,
    FAILED,
    LAYERS,
    MODELS,
    SWEEP,
    VIOLATION,
    find_cell,
    make_row,
    plan_tables,
    planned_cells,
    value_of,
)

from stitchgrid.atlas import write_atlas
from stitchgrid.atlas.reading import read_sweep
from stitchgrid.catalog import Catalog, load_question
from stitchgrid.store import Store

VIEWS = ("overview-map", "large", "small", "profile-one", "profile-all", "scatter-map", "layer-map", "tree")


@pytest.fixture(scope="module")
def page_file(store, tmp_path_factory):
    return write(store, tmp_path_factory.mktemp("page") / "atlas.html")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return drawn(3).write(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def planted_file(planted, tmp_path_factory):
    return write(planted, tmp_path_factory.mktemp("page") / "planted.html")


def write(store, path):
    with Catalog(store) as catalog:
        write_atlas(catalog, catalog.sweeps, path)
    return path


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)
    settle(page)


def test_all_that_a_reader_set_is_in_the_address(planted_file, visit):
    page = visit(planted_file)
    first = page.evaluate("location.hash")
    choices = {"#minus": 2, "#x": 1, "#y": 2, "#scope": 1, "#order": 3, "#distance": -1}
    for box, position in choices.items():
        options = page.locator(f"{box} option").evaluate_all("all => all.map((one) => one.value)")
        page.select_option(box, options[position])
    page.check("#every")
    page.locator("#limit-residual").evaluate("(one) => { one.value = 0.9; one.dispatchEvent(new Event('input')); }")
    page.wait_for_function("() => location.hash.includes('residual=0.9')")
    boxes = (*choices, "#limit-residual", "#limit-claim")
    shown = [page.locator(box).input_value() for box in boxes]

    again = visit(planted_file, page.evaluate("location.hash"))
    assert [again.locator(box).input_value() for box in boxes] == shown
    assert again.is_checked("#every")
    assert hash_parts(again) == hash_parts(page)
    assert page.evaluate("location.hash") != first
    other = visit(planted_file, first + "&x=no.such,9&order=upside&claim=-1&residual=one&scope=")
    assert other.evaluate("location.hash") == first


def copied(page, view, form):
    page.evaluate("window.copied = []")
    page.get_by_label(f"Copy {view} as {form}").click()
    for _ in range(100):
        if found := page.evaluate("window.copied"):
            return found[0]
        page.wait_for_timeout(20)
    raise AssertionError(f"nothing of {view} was copied as {form}")


def csv_of(text):
    return pa.csv.read_csv(io.BytesIO(text.encode())).to_pylist()


def pixel(page, selector, x, y):
    """Return the colour of a canvas at a place given in pixels of the page."""
    look = """([selector, x, y]) => {
      const canvas = document.querySelector(selector), ratio = canvas.width / canvas.clientWidth;
      return [...canvas.getContext("2d").getImageData(Math.round(x * ratio), Math.round(y * ratio), 1, 1).data];
    }"""
    return page.evaluate(look, [selector, x, y])


def colours_in(page, selector):
    look = """(selector) => [...document.querySelectorAll(selector)].map((canvas) => {
      const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), found = new Set();
      for (let at = 0; at < data.length; at += 4) {
        if (data[at + 3]) found.add(data[at] << 16 | data[at + 1] << 8 | data[at + 2]);
      }
      return found.size;
    })"""
    return page.evaluate(look, selector)


# Numbers and colours --------------------------------------------------------------------------------------------------


def test_a_pinned_pair_tells_every_score_of_the_store(visit, page_file):
    cells = [cell for cell in planned_cells() if cell.pair == VIOLATION]
    page = visit(page_file, hash_of("cka.cka", VIOLATION[::2], VIOLATION[1::2]))
    rows = page.locator("#sheet .scores tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.children].map((one) => one.textContent))"
    )
    told = {name: text for name, text, *_ in rows}
    for cell in cells:
        for metric in cell.metrics:
            name = cell.matcher + ("" if cell.seed is None else f", seed {cell.seed}")
            value = value_of(cell, metric)
            name = name if metric == cell.matcher else f"{name} · {metric}"
            if value is not None:
                assert float(told[name]) == pytest.approx(value, rel=1e-5), name
    assert page.locator("#sheet .value").inner_text().split()[0] == told["cka"]
    assert "misleading" in page.locator("#sheet").inner_text()


def test_the_table_behind_the_heat_map_holds_every_value(visit, page_file):
    page = visit(page_file, hash_of("direct.residual", MODELS))
    page.locator("#table-box summary").click()
    rows = page.locator("#pair-table tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [...row.querySelectorAll('td')].map((one) => one.textContent))"
    )
    for source, row in zip(LAYERS, rows, strict=True):
        for target, text in zip(LAYERS, row, strict=True):
            value = value_of(find_cell((MODELS[0], source, MODELS[1], target), "direct"), "residual")
            assert float(text.split()[0]) == pytest.approx(value, rel=1e-5)
    heads = page.locator("#pair-table thead th").all_inner_texts()
    assert heads[1:] == list(LAYERS)


def test_colours_are_those_of_the_values(visit, page_file, store):
    page = visit(page_file, hash_of("cka.cka", MODELS))
    with Catalog(store) as catalog:
        grids = read_sweep(catalog, SWEEP)
    scale = next(choice.scale for choice in grids.choices if choice.matcher == "cka")
    number = [choice.matcher for choice in grids.choices if choice.is_score].index("cka")
    page.evaluate("(n) => document.querySelectorAll('#small canvas')[n].id = 'looked'", number)
    height = page.evaluate("document.getElementById('looked').clientHeight")
    side = height / len(LAYERS)
    stops = np.array([[int(stop[k : k + 2], 16) for k in (1, 3, 5)] for stop in viridis()])
    for i, source in enumerate(LAYERS):
        for j, target in enumerate(LAYERS):
            value = value_of(find_cell((MODELS[0], source, MODELS[1], target), "cka"), "cka")
            place = float(scale.position(np.array(value)))
            expected = [np.interp(place, np.linspace(0, 1, len(stops)), stops[:, k]) for k in range(3)]
            found = pixel(page, "#looked", (j + 0.25) * side, (i + 0.25) * side)
            np.testing.assert_allclose(found[:3], expected, atol=3)


def viridis():
    from stitchgrid.atlas.page import asset

    return re.findall(r'"(#[0-9a-f]{6})"', asset("page/colours.js").partition("const VIRIDIS")[2].partition("]")[0])


def test_a_failed_cell_says_why(visit, page_file):
    page = visit(page_file, hash_of("cka.cka", FAILED[::2], FAILED[1::2]))
    told = page.locator("#sheet").inner_text()
    assert "no value" in told
    assert ERROR in told
    assert ERROR in page.locator("#provenance-body").inner_text()


def test_answers_are_those_of_the_view(visit, planted_file, planted):
    page = visit(planted_file, hash_of("direct.residual", ("a", "b"), sweep="planted"))
    with Catalog(planted) as catalog:
        rows = catalog.query(
            "from answers where source_model = 'a' and target_model = 'b' and matcher = 'direct' order by target_index"
        ).to_pylist()
    shown = page.locator("#answers-table tbody tr.answer").evaluate_all(
        "(rows) => rows.map((row) => [...row.children].map((one) => one.textContent))"
    )
    assert len(shown) == len(rows) == 4
    for texts, row in zip(shown, rows, strict=True):
        assert texts[:3] == [row["target_layer"], row["source_layer"], row["verdict"]]
        assert float(texts[3]) == pytest.approx(row["value"], rel=5e-3)
        assert texts[5] == row["runner_up"]
        assert float(texts[6]) == pytest.approx(row["margin"], rel=5e-3)
        assert float(texts[7].split(" to ")[0]) == pytest.approx(row["margin_low"], rel=5e-3)
        signs = {True: "✓", False: "✗"}
        for text, check in zip(texts[8:], row["checks"], strict=True):
            assert text == signs.get(check["passed"], "–" if check["detail"].startswith("Does not apply") else "·")
    page.locator("#answers-table tbody tr.answer button").first.click()
    settle(page)
    detail = page.locator("#answers-table .detail").inner_text()
    assert all(check["detail"] in detail for check in rows[0]["checks"])
    assert "Other matchers" in detail
    assert hash_parts(page)["pin"] == f"{rows[0]['source_layer']},{rows[0]['target_layer']}"


def test_a_twin_and_shuffled_images_stand_in_the_profile(visit, planted_file):
    page = visit(planted_file, hash_of("direct.residual", ("a", "b"), ("l1", "l1"), sweep="planted"))
    drawn_ = ET.fromstring(copied(page, "profile", "SVG"))
    texts = [one.text for one in drawn_.iter("{http://www.w3.org/2000/svg}text")]
    assert any("untrained twin" in text for text in texts)
    assert any("shuffled images" in text for text in texts)
    assert any("95 % interval" in text for text in texts)
    assert f"a{TWIN}" not in page.locator("#map-words").inner_text()


def test_claims_are_counted_as_the_query_counts_them(visit, page_file, store):
    page = visit(page_file, hash_of("task_loss.accuracy", ("net/0", "net/0")))
    page.select_option("#scope", "all")
    for limits in ({}, {"residual": "0.05"}, {"claim": "0.95"}):
        for name, value in limits.items():
            page.locator(f"#limit-{name}").fill(value)
        settle(page)
        rows = page.locator("#counts tbody tr").evaluate_all(
            "(rows) => rows.map((row) => [...row.children].map((one) => one.textContent))"
        )
        with Catalog(store) as catalog:
            found = catalog.ask(load_question("misleading"), {"all": "true", **limits}).to_pylist()
        for seed, row in enumerate(rows):
            mine = [one for one in found if one["seed"] == seed]
            assert row[1:] == [
                str(sum(one["claims"] for one in mine)),
                str(sum(one["misleading"] is True for one in mine)),
                "0",
            ]
        page.get_by_text("Back to the thresholds of the query").click()
        settle(page)


# Views and what one can do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_each_view_draws(visit, planted_file, scheme, width):
    page = visit(planted_file, width=width, color_scheme=scheme)
    for view in VIEWS:
        assert min(colours_in(page, f"#{view} canvas")) >= 3, view
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", ground)[0]) < 128) == (scheme == "dark")


def test_a_click_pins_and_escape_frees(visit, page_file):
    page = visit(page_file, hash_of("cka.cka", MODELS))
    assert "pin" not in hash_parts(page)
    canvas = page.locator("#small canvas").first
    box = canvas.bounding_box()
    side = box["height"] / len(LAYERS)
    canvas.hover(position={"x": 1.5 * side, "y": 2.5 * side})
    settle(page)
    assert page.locator("#tip").is_visible()
    assert LAYERS[2] in page.locator("#tip .ends").inner_text()
    canvas.click(position={"x": 1.5 * side, "y": 2.5 * side})
    settle(page)
    assert hash_parts(page)["pin"] == f"{LAYERS[2]},{LAYERS[1]}"
    assert page.locator("#sheet").is_visible()
    assert "Pinned net/0 block2 into net/1 block1" in page.locator("#live").inner_text()
    press(page, "Escape")
    assert "pin" not in hash_parts(page)
    assert not page.locator("#sheet").is_visible()


def test_keys_move_pin_search_and_change_the_score(visit, page_file):
    page = visit(page_file, hash_of("direct.residual", MODELS))
    page.locator("#large canvas").focus()
    press(page, "ArrowDown", "ArrowDown", "ArrowRight")
    value = value_of(find_cell((MODELS[0], LAYERS[1], MODELS[1], LAYERS[1]), "direct"), "residual")
    assert f"{value:.6g}" in page.locator("#live").inner_text()
    press(page, "Enter")
    assert hash_parts(page)["pin"] == f"{LAYERS[1]},{LAYERS[1]}"
    scores = []
    for _ in range(6):
        press(page, "]")
        scores.append(hash_parts(page)["metric"])
    assert set(scores) == {"direct.residual", "task_loss.accuracy", "cka.cka", "pwcca.pwcca", "procrustes.procrustes"}
    press(page, "[")
    assert hash_parts(page)["metric"] == scores[-2]
    press(page, "/")
    page.keyboard.type("net/0 block2")
    assert page.locator("#found li").count() == 1
    press(page, "Enter")
    assert hash_parts(page)["pair"].endswith(",net/0")
    assert hash_parts(page)["pin"].endswith(",block2")


def test_a_link_opens_what_was_looked_at_and_a_reload_keeps_it(visit, page_file):
    link = hash_of("task_loss.accuracy", ("net/1", "net/0"), ("block1", "block2")) + "&variant=1"
    page = visit(page_file, link)
    assert page.locator("#sheet .value").inner_text().endswith("task_loss, seed 1 · accuracy")
    before = page.evaluate("location.hash")
    page.reload()
    ready(page)
    assert page.evaluate("location.hash") == before
    assert page.locator("#choice option:checked").inner_text() == "task_loss, seed 1 · accuracy"
    page.evaluate("(hash) => { location.hash = hash; }", hash_of("cka.cka", MODELS))
    page.wait_for_timeout(200)
    assert page.locator("#choice option:checked").inner_text() == "cka"
    for nonsense in ("#metric=no.such&pair=x,y&pin=%E0%A4%A&sweep=none", "#pin=a,b", "#&=&,"):
        assert visit(page_file, nonsense).locator("#choice option:checked").inner_text() == "direct · residual"


def test_a_brush_marks_cells_and_a_threshold_can_be_dragged(visit, page_file):
    page = visit(page_file, hash_of("task_loss.accuracy", ("net/0", "net/0")))
    canvas = page.locator("#scatter-map canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()

    def drag(start, end):
        page.mouse.move(box["x"] + start[0], box["y"] + start[1])
        page.mouse.down()
        page.mouse.move(box["x"] + end[0], box["y"] + end[1], steps=4)
        page.mouse.up()
        settle(page)

    drag((66, 16), (box["width"] - 20, box["height"] - 55))
    assert "9 layer pairs marked" in page.locator("#scatter-words").inner_text()
    assert sum(row["marked"] for row in csv_of(copied(page, "scatter", "CSV"))) == 9
    limits = page.evaluate("document.getElementById('limit-residual').value")
    where = next(x for x in range(80, round(box["width"]) - 20, 3) if hovers(page, box, x))
    drag((where, 200), (where + 60, 200))
    assert float(page.locator("#limit-residual").input_value()) > float(limits)


def hovers(page, box, x):
    page.mouse.move(box["x"] + x, box["y"] + 200)
    return page.evaluate("document.querySelector('#scatter-map canvas').style.cursor") == "ew-resize"


def test_overview_order_difference_and_all_metrics(visit, page_file):
    page = visit(page_file, hash_of("cka.cka", MODELS))
    for order in ("name", "accuracy", "similar", "tree", "given"):
        page.select_option("#order", order)
        settle(page)
        assert min(colours_in(page, "#overview-map canvas")) > 2
    page.locator("#overview-map canvas").focus()
    press(page, "ArrowLeft")
    assert hash_parts(page)["pair"] == "net/0,net/0"
    page.select_option("#minus", label="procrustes")
    settle(page)
    assert "cka minus procrustes" in page.locator("#pair-words").inner_text()
    few = page.locator("#small canvas").count()
    page.check("#every")
    settle(page)
    assert page.locator("#small canvas").count() == 13 > few
    rows = csv_of(copied(page, "overview", "CSV"))
    values = [max(v for v in column if v is not None) for column in best_columns()]
    assert rows[0]["mean_best"] == pytest.approx(np.mean(values), rel=1e-5)


def best_columns():
    cells = [[find_cell((MODELS[0], i, MODELS[0], j), "cka") for i in LAYERS] for j in LAYERS]
    return [[value_of(cell, "cka") for cell in column] for column in cells]


def test_what_is_copied_is_what_is_shown(visit, page_file, store):
    page = visit(page_file, hash_of("direct.residual", MODELS))
    with Catalog(store) as catalog:
        rows = catalog.query(copied(page, "pair", "SQL")).to_pylist()
        for view in ("answers", "overview", "profile", "scatter", "map"):
            assert catalog.query(copied(page, view, "SQL")).num_rows > 0, view
    table = csv_of(copied(page, "pair", "CSV"))
    assert [(row["source_layer"], row["target_layer"], row["value"]) for row in rows] == [
        (row["source_layer"], row["target_layer"], row["direct · residual"]) for row in table
    ]
    assert [row["value"] for row in rows] == [
        value_of(find_cell((MODELS[0], i, MODELS[1], j), "direct"), "residual") for i in LAYERS for j in LAYERS
    ]
    for view in ("overview", "pair", "profile", "scatter", "map"):
        assert bytes(copied(page, view, "PNG")[:8]) == b"\x89PNG\r\n\x1a\n"
        tags = [one.tag for one in ET.fromstring(copied(page, view, "SVG")).iter()]
        assert len(tags) > 10, view


def test_symmetric_scores_of_one_network_show_one_triangle(visit, page_file):
    page = visit(page_file, hash_of("cka.cka", ("net/0", "net/0")))
    squares = ET.fromstring(copied(page, "pair", "SVG")).iter("{http://www.w3.org/2000/svg}rect")
    fills = [one.get("fill") for one in squares if (one.get("fill") or "").startswith("rgb(")]
    assert len(fills) == 6
    assert "one triangle" in page.locator("#pair-words").inner_text()


# What comes to it -----------------------------------------------------------------------------------------------------


def test_hostile_names_are_text(visit, tmp_path):
    evil = {"net/0": "<img src=x onerror=alert(1)>", "net/1": "a,b&c=d#%25 ]]>\u202e層", "conv1": "</script><b>,"}

    def rename(row):
        return {key: evil.get(one, one) if isinstance(one, str) else one for key, one in row.items()}

    tables = {name: pa.Table.from_pylist(list(map(rename, table.to_pylist()))) for name, table in plan_tables().items()}
    store = Store.open(tmp_path, create=True)
    store.write_plan(SWEEP, store.write_job(SWEEP, {"name": "<script>"}), **tables, info={})
    store.write_part("shard", [make_row(cell, metric, 0.5) for cell in planned_cells() for metric in cell.metrics])
    page = visit(
        write(store, tmp_path / "atlas.html"),
        hash_of("cka.cka", (evil["net/0"], evil["net/1"]), (evil["conv1"], "block1")),
    )
    assert page.locator("img, main b b, main script").count() == 0
    assert evil["net/0"] in page.locator("#source option").all_inner_texts()
    assert evil["conv1"] in page.locator("#sheet").inner_text()
    before = page.evaluate("location.hash")
    page.reload()
    ready(page)
    assert page.evaluate("location.hash") == before
    for view in ("overview", "pair", "profile", "scatter", "map"):
        ET.fromstring(copied(page, view, "SVG"))


def test_a_phone_shows_one_pair_with_a_sheet_from_below(visit, planted_file):
    page = visit(
        planted_file,
        hash_of("direct.residual", ("a", "b"), ("l1", "l2"), sweep="planted"),
        width=390,
        height=800,
        has_touch=True,
    )
    box = page.locator("#sheet").bounding_box()
    assert (box["x"], box["width"]) == (0, 390)
    assert box["y"] + box["height"] == 800
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#close").click()
    page.locator("#large canvas").tap(position={"x": 150, "y": 150})
    settle(page)
    assert page.locator("#sheet").is_visible()


def test_paper_is_white_and_nothing_is_cut(visit, planted_file):
    page = visit(planted_file, color_scheme="dark")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 720, "height": 1000})
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#bar").is_visible()


def test_an_empty_page_and_an_empty_sweep_say_so(visit, tmp_path):
    empty = visit(write(Store.open(tmp_path / "empty", create=True), tmp_path / "empty.html"))
    assert empty.locator("#title").inner_text() == "No sweeps"
    store = Store.open(tmp_path / "planned", create=True)
    store.write_plan(SWEEP, store.write_job(SWEEP, {}), **plan_tables(), info={})
    page = visit(write(store, tmp_path / "planned.html"))
    assert "Nothing is computed yet" in page.locator("#lede").inner_text()
    assert "no answers" in page.locator("#answers-words").inner_text()
