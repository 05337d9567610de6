"""The report: its numbers are those of the queries, its names stay names, and it says what is missing."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from helpers_paper import LAYERS, MODELS, SWEEP, make_paper_store, paper_tables
from helpers_store import make_synthetic_store
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from stitchgrid.catalog import Catalog, load_question
from stitchgrid.catalog.misleading import count_misleading, misleading_rule
from stitchgrid.cli import cli
from stitchgrid.errors import QueryError
from stitchgrid.report import render_report
from stitchgrid.report.content import MARKS, as_text, heading
from stitchgrid.report.correlation import rank_correlation, rho_interval
from stitchgrid.report.markdown import escape
from stitchgrid.report.probing import correlate, judge
from stitchgrid.report.report import SECTIONS, read_report
from stitchgrid.store import Store

HOSTILE = {
    "net/0": "</style><script>alert(1)</script>",
    "net/1": "\"><img src='https://evil.example/x' onerror=alert(2)> | $x^{$ \u2028 層 \u202e",
    "a": "<!--<script>",
    "b": "a'b\"c&amp; [x](javascript:alert(3)) `y` \x1b[31m",
    "c": "line\n# heading",
    "other": "_$x^{$",
}
TITLES = {
    "paper_sanity_within": "Is every layer its own best source?",
    "paper_sanity_across": "Is the corresponding layer of another seed the best source?",
    "paper_ood": "Do stitched representations stay in the target's distribution?",
    "misleading": "Which claims of trained stitches are misleading?",
    "paper_sensitivity": "Does a matcher see what a probe loses?",
    "paper_specificity": "Does a matcher distinguish layers of two seeds as probes do?",
    "paper_monotonicity": "Are near layers more alike than far ones?",
}


class Page(HTMLParser):
    """A page as a browser's parser sees it: elements, and the tables and other texts as text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.items, self.text, self._inside = [], [], [], "", None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "li":
            self.items.append("")

    def handle_endtag(self, tag):
        self._inside = None if tag in ("td", "th", "style") else self._inside

    def handle_data(self, data):
        if self._inside != "style":
            self.text += data
        if self._inside in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.items and self._inside in ("li", "b", "span"):
            self.items[-1] += data

    def rows(self, *columns):
        """Return the first table with these columns, a dictionary a row."""
        table = next(table for table in self.tables if set(columns) <= set(table[0]))
        return [dict(zip(table[0], row, strict=True)) for row in table[1:]]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    with Catalog(make_paper_store(tmp_path_factory.mktemp("grid"))) as catalog:
        yield catalog


@pytest.fixture(scope="module")
def html(catalog):
    return render_report(catalog, [SWEEP], "html")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture(scope="module")
def sections(catalog):
    return read_report(catalog, SWEEP).sections


def answer(catalog, name, **given):
    return catalog.ask(load_question(name), given).to_pylist()


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("paper_sanity_within", ("num_networks", "num_judged", "num_violations", "own_score", "best_accuracy")),
        ("paper_sanity_across", ("num_pairs", "num_judged", "num_violations", "num_later", "chance_share")),
        ("paper_ood", ("detector", "relation", "num_scored", "num_in", "num_left", "num_collapsed", "mean_auroc")),
        ("paper_monotonicity", ("direction", "model", "num_triples", "num_violations", "conformity")),
    ],
)
def test_the_tables_hold_the_numbers_of_the_queries(page, catalog, name, columns):
    rows = answer(catalog, name)
    wanted = [[row["matcher"], *(as_text(row[column]) for column in columns)] for row in rows]
    names = tuple(map(heading, columns))
    found = [[row["matcher"], *(row[name] for name in names)] for row in page.rows(*names)]
    assert found == wanted
    assert len(wanted) > 2


def test_misleading_claims_are_those_of_the_query(page, catalog):
    rows = answer(catalog, "misleading", all="true")
    found = page.rows("claims", "misleading")
    assert len(found) == len(MODELS) ** 2
    for row in found:
        mine = [r for r in rows if (r["source_model"], r["target_model"]) == (row["source"], row["target"])]
        assert int(row["cells"]) == len(mine) == 2 * len(LAYERS) ** 2
        assert int(row["claims"]) == sum(r["claims"] for r in mine)
        assert int(row["misleading"]) == sum(r["misleading"] is True for r in mine)
    wrong, claims = (sum(int(row[name]) for row in found) for name in ("misleading", "claims"))
    assert any(f"task_loss: {wrong} of {claims} (" in item for item in page.items)
    assert f"{wrong - 20} more rows are left out." in page.text
    assert misleading_rule() in page.text
    listed = page.rows("residual of direct")
    assert [row["residual of direct"] for row in listed] == [
        as_text(row["direct_residual"]) for row in answer(catalog, "misleading")[:20]
    ]


@pytest.mark.parametrize(
    ("name", "against", "group", "title"),
    [
        ("paper_sensitivity", "accuracy_loss", ("model", "layer"), TITLES["paper_sensitivity"]),
        ("paper_specificity", "accuracy_gap", ("source_model", "target_model"), TITLES["paper_specificity"]),
    ],
)
def test_rank_correlations_are_those_of_scipy(catalog, sections, name, against, group, title):
    [section] = [one for one in sections if one.title == title]
    [table] = section.tables
    rows = answer(catalog, name)
    for line in table.rows:
        found = dict(zip(table.columns, line, strict=True))
        mine = [row for row in rows if row["matcher"] == found["matcher"]]
        x, y = [row["dissimilarity"] for row in mine], [row[against] for row in mine]
        assert (found["rho"], found["p of rho"]) == pytest.approx(tuple(spearmanr(x, y)))
        assert (found["tau"], found["p of tau"]) == pytest.approx(tuple(kendalltau(x, y)))
        parts = {}
        for row in mine:
            parts.setdefault(tuple(row[key] for key in group), []).append((row["dissimilarity"], row[against]))
        single = [spearmanr(*zip(*part, strict=True)).statistic for part in parts.values() if len(part) > 2]
        assert found["mean rho"] == pytest.approx(sum(single) / len(single))
        assert found["groups"] == len(single)
        [verdict] = [one for one in section.verdicts if one.subject == found["matcher"]]
        assert verdict.holds == (found["rho"] > 0 and found["p of rho"] < 0.05)


def test_a_rank_correlation_of_a_constant_or_of_two_pairs_is_undefined():
    for x, y in (([1, 2, 3], [5, 5, 5]), ([1, 2], [1, 2]), ([1, 2, math.nan], [1, 2, 3])):
        found = rank_correlation(x, y)
        assert (found.rho, found.rho_p, found.tau, found.tau_p) == (None, None, None, None)
    assert rank_correlation([1e-16, 0, -2e-16], [0.1, 0.2, 0.3]).rho is None  # what rounding leaves is no order
    tied = rank_correlation([0.3, 0.1 + 0.2, 1, 2], [1, 2, 3, 4])
    assert tied.rho == pytest.approx(spearmanr([0, 0, 1, 2], [1, 2, 3, 4]).statistic)
    perfect = rank_correlation(range(20), [value**3 for value in range(20)])
    assert (perfect.rho, perfect.tau, perfect.num_pairs) == (1, 1, 20)
    assert perfect.rho_p < 1e-6


def test_a_verdict_without_an_order_says_why():
    def verdict(*pairs):
        rows = [
            {"label": "cka", "metric": "cka", "layer": k, "dissimilarity": x, "loss": y}
            for k, (x, y) in enumerate(pairs)
        ]
        found = correlate(rows, "loss", lambda row: row["layer"])
        assert (found["mean_rho"], found["num_groups"]) == (None, 0)  # one pair a layer
        return judge(found)

    assert verdict((1, 2), (2, 3)).text == "no rank correlation: too few pairs"
    assert verdict((1, 2), (1, 3), (1, 4)).text == "no rank correlation: one side is constant"
    assert verdict((1, 2), (1, 3), (1, 4)).holds is None
    assert verdict(*((k, k) for k in range(9))).text == "rho 1.00, p below 0.0001, tau 1.00, over 9 pairs"
    assert [verdict(*((k, sign * k) for k in range(9))).holds for sign in (1, -1)] == [True, False]
    assert verdict((1, 1), (2, 3), (3, 2)).holds is False  # rho 0.5 with p 0.67


def test_every_section_states_its_rule_its_query_and_a_verdict_of_every_matcher(sections):
    assert {section.query: section.title for section in sections} == TITLES
    for section in sections:
        assert len(section.rule) > 80
        assert section.missing == ""
        assert section.tables
        assert {verdict.subject.split(",")[0] for verdict in section.verdicts} <= {"direct", "task_loss", "cka"}
        assert section.verdicts


# Forms ----------------------------------------------------------------------------------------------------------------


def test_markdown_has_the_tables_of_the_page(page, catalog):
    text = render_report(catalog, [SWEEP], "markdown")
    tables, current = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("| "):
            current.append(line[2:-2].replace("\\~", "~").split(" | "))
        elif current:
            tables.append([row for k, row in enumerate(current) if k != 1])
            current = []
    assert tables == page.tables
    assert all(f"## {title}" in text for title in TITLES.values())


def test_the_page_stands_alone_and_runs_nothing(page):
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "svg"}
        assert attributes.get("src", "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,")
        assert not {"action", "style", "onerror"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")
    assert [tag for tag, _ in page.elements].count("img") == 5
    [policy] = [one["content"] for _, one in page.elements if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_the_same_store_gives_the_same_report(catalog, html):
    assert render_report(catalog, [SWEEP], "html") == html


def test_names_from_the_store_cannot_leave_their_place(tmp_path):
    with Catalog(make_paper_store(tmp_path, rename=HOSTILE)) as catalog:
        page = Page(render_report(catalog, [SWEEP], "html"))
        text = render_report(catalog, [SWEEP], "markdown")
    assert not any(tag == "script" or "onerror" in attributes for tag, attributes in page.elements)
    assert all(one["src"].startswith("data:") for tag, one in page.elements if tag == "img")
    assert {row["model"] for row in page.rows("architecture")} >= {HOSTILE["net/0"]}
    assert "\x1b" not in page.text + text
    assert "\u202e" not in page.text + text
    assert "\n# heading" not in text
    assert not [line for line in text.splitlines() if "<script>" in line.replace("\\<", "")]
    widths = {len(line.replace("\\|", "").split(" | ")) for line in text.splitlines() if "relative accuracy" in line}
    listed = [line for line in text.splitlines() if line.startswith("| ") and "task_loss | 0 |" in line]
    assert {len(line.replace("\\|", "").split(" | ")) for line in listed} == widths


@given(st.text())
def test_escaped_text_is_one_line_without_markup(text):
    shown = escape(text)
    assert len(shown.splitlines()) <= 1
    bare = shown.replace("\\\\", "").replace("\\", "\0")
    assert all(bare[k - 1] == "\0" for k, letter in enumerate(bare) if letter in "`*[]|")
    assert "<" not in shown
    assert ">" not in shown
    assert not re.search("&(?!amp;|lt;|gt;|#)", shown)


# What is missing ------------------------------------------------------------------------------------------------------


def missing(store, sweep):
    with Catalog(store) as catalog:
        found = {section.query: section.missing for section in read_report(catalog, sweep).sections}
        for form in ("html", "markdown"):
            assert sweep in render_report(catalog, [sweep], form)
    return {query: text for query, text in found.items() if text}


def test_a_sweep_without_scores_ranks_and_probes_is_told_what_to_add(tmp_path):
    found = missing(make_synthetic_store(tmp_path).store, "synthetic")
    assert set(found) == {"paper_ood", "paper_sensitivity", "paper_specificity"}
    assert found["paper_ood"] == '[diagnostics] ood = ["mahalanobis"]'
    assert found["paper_sensitivity"] == ('rank = [8, 4, 2, 1] on a matcher and [probes] rank = ["full", 8, 4, 2, 1]')
    assert found["paper_specificity"] == "[probes]"


def test_a_sweep_of_which_nothing_is_computed_says_so(tmp_path):
    found = missing(make_paper_store(tmp_path, keep=lambda cell, metric: False), SWEEP)
    assert set(found) == set(TITLES)
    assert set(found.values()) == {"stitchgrid resume paper"}


def test_a_sweep_of_one_network_across_has_no_grids(tmp_path):
    store = Store.open(tmp_path, create=True)
    tables = paper_tables({})
    rows = [row for row in tables["cells"].to_pylist() if (row["source_model"], row["target_model"]) == MODELS[1:]]
    tables["cells"] = type(tables["cells"]).from_pylist([row for row in rows if row["matcher"] == "cka"])
    store.write_plan("across", store.write_job("across", {}), **tables, info={})
    found = missing(store, "across")
    assert found["paper_sanity_within"] == 'a network compared with itself: [grid] pairs = "within"'
    assert found["paper_sanity_across"].startswith("two networks of one architecture compared: seeds = [0, 1]")
    assert found["misleading"] == '[[matchers]] kind = "task_loss", with its accuracy'
    assert found["paper_monotonicity"].startswith("three layers of a network compared with one another")
    assert found["paper_specificity"].startswith("two seeds of a model compared")


def test_a_store_without_sweeps_gives_a_report_that_says_so(tmp_path):
    with Catalog(Store.open(tmp_path, create=True)) as catalog:
        for form in ("html", "markdown"):
            assert "The store holds no planned sweep: launch a job" in render_report(catalog, [], form)


def test_an_unknown_sweep_is_refused_with_the_nearest(catalog):
    with pytest.raises(QueryError, match=r"no planned sweep 'papr'.*did you mean 'paper'"):
        render_report(catalog, ["papr"], "html")


# Matchers of one kind, sources of reduced rank ------------------------------------------------------------------------


def test_misleading_cells_are_counted_by_matcher_too():
    row = {"source_model": "f", "target_model": "g", "source_layer": "a", "target_layer": "b", "samples": 9}
    told = {"claims": True, "misleading": True}
    rows = [row | told | {"matcher": "task_loss", "params": json.dumps({"epochs": n})} for n in (1, 1, 2)]
    rows[2] |= {"misleading": None}
    first, second = count_misleading(rows)
    assert (first.num_cells, first.num_misleading, first.num_unchecked, first.pairs) == (2, 2, 0, ("a -> b",))
    assert (second.num_claims, second.num_misleading, second.num_unchecked, second.pairs) == (1, 0, 1, ())


def test_sources_of_reduced_rank_are_in_the_section_on_ranks_alone(sections):
    for section in sections:
        assert not any("rank " in verdict.subject for verdict in section.verdicts)
    assert len(SECTIONS) == len(TITLES)


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page_or_prints_markdown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = make_paper_store(tmp_path / "grid").uri

    def run(*arguments, code=0):
        result = CliRunner().invoke(cli, ["report", *arguments, "--store", store])
        assert result.exit_code == code, result.output
        return result

    assert run(SWEEP).stdout == "report.html: paper\n"
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!doctype html>")
    printed = run("--format", "markdown").stdout
    assert printed.startswith("# paper\n")
    run(SWEEP, "--format", "markdown", "--out", "report.md")
    assert (tmp_path / "report.md").read_text("utf-8") == printed
    said = run("papr", code=2).stderr
    assert "did you mean 'paper'" in said
    said = run(SWEEP, "--out", str(tmp_path / "nowhere" / "r.html"), code=2).stderr
    assert "cannot write" in said
    assert "name another file with --out" in said


# What the sweep says of its networks ----------------------------------------------------------------------------------


def test_a_report_begins_with_the_networks_one_sentence_a_pair(catalog, page):
    report = read_report(catalog, SWEEP)
    found = [row for row in catalog.query("from answers").to_pylist() if "rank" not in json.loads(row["params"])]
    assert len(report.found.verdicts) == len(MODELS) ** 2
    assert page.text.index("Your networks") < page.text.index("How the matchers do in tests")
    for verdict in report.found.verdicts:
        source, _, target = verdict.subject.partition(" into ")
        mine = [row for row in found if (row["source_model"], row["target_model"]) == (source, target)]
        for label, told in (part.split(": ") for part in verdict.text.split("; ")):
            kind, _, seed = label.partition(" (seed ")
            rows = [r for r in mine if r["matcher"] == kind and (not seed or r["seed"] == int(seed[0]))]
            counts = [sum(r["verdict"] == name for r in rows) for name in ("supported", "weak", "not supported")]
            assert told.startswith(f"{counts[0]} of {len(rows)} (")
            assert not counts[1] or f"{counts[1]} weak" in told
            assert not counts[2] or f"{counts[2]} not supported" in told
    tables = [table for table in page.tables if {"best source", "verdict", "failed"} <= set(table[0])]
    assert len(tables) == len(MODELS) ** 2
    assert sum(len(table) - 1 for table in tables) == len(found)


def test_the_best_sources_of_a_pair_are_told_at_a_glance(catalog, page):
    found = catalog.query("from answers").to_pylist()
    tables = [table for table in page.tables if table[0][0].startswith("layer of ")]
    assert len(tables) == len(MODELS) ** 2
    for table in tables:
        target = table[0][0].removeprefix("layer of ")
        mine = [row for row in found if row["target_model"] == target and "rank" not in json.loads(row["params"])]
        for layer, *cells in table[1:]:
            known = {f"{r['source_layer']} {MARKS[r['verdict']]}" for r in mine if r["target_layer"] == layer}
            assert set(cells) - {"–"} <= known


def test_of_very_many_pairs_the_rest_is_told_in_a_sentence(catalog, monkeypatch):
    monkeypatch.setattr("stitchgrid.report.networks.TOP", 2)
    report = read_report(catalog, SWEEP)
    assert len(report.found.tables) == 4
    assert report.found.left_out == f"The layers of {len(MODELS) ** 2 - 2} more pairs are left out."
    for form in ("html", "markdown"):
        assert report.found.left_out in render_report(catalog, [SWEEP], form)


def test_a_share_of_claims_leads_to_their_rows(html, page):
    [link] = [one["href"] for tag, one in page.elements if tag == "a"]
    [body] = [one for tag, one in page.elements if tag == "tbody" and "id" in one]
    assert link == f"#{body['id']}"
    assert "tbody:target" in html


def test_figures_are_legible_on_dark_pages(catalog):
    pictures = [one for section in read_report(catalog, SWEEP).sections for one in section.pictures]
    for picture in pictures:
        drawn = picture.draw().decode()
        assert "@media (prefers-color-scheme: dark)" in drawn
        assert "fill: #1c1d20" in drawn.partition("</style>")[2]  # which the rules make bright
        assert "fill: #ffffff" not in drawn.partition("</style>")[2]


def test_the_evidence_is_that_of_the_view(tmp_path):
    from test_answers import plain

    with Catalog(plain("task_loss").write(tmp_path)) as catalog:
        report = read_report(catalog, "planted")
        text = render_report(catalog, ["planted"], "markdown")
        views = {row["matcher"]: row for row in catalog.query("from answers").to_pylist()}
    _, table = report.found.tables
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    for row in rows:
        view = views[row["matcher"]]
        same = {"best source": "source_layer", "next best": "runner_up", "p": "p", "verdict": "verdict"}
        assert {name: row[name] for name in same} == {name: view[of] for name, of in same.items()}
        assert row["score"].startswith(f"{view['value']:.3g}")
        assert (row["margin"] or "").startswith("" if view["margin"] is None else f"{view['margin']:.3g}")
        assert list(row["as good"]) == view["candidates"]
    assert [row["not known"] for row in rows] == [None, None, ["above_shuffled"]]
    assert "- **a into b**: cka_unbiased: 1 of 1 (100 %, 95 % interval 21 to 100 %) supported; direct: 1 of 1" in text


def test_what_the_job_lacks_is_named_in_one_place_each_thing_once(tmp_path):
    with Catalog(make_synthetic_store(tmp_path).store) as catalog:
        report = read_report(catalog, "synthetic")
        text = render_report(catalog, ["synthetic"], "markdown")
    lacks = {lack.what: lack.why for lack in report.lacks}
    assert list(lacks) == [
        *("[controls] untrained = true", "[controls] shuffled = 40", "[intervals] groups = 20"),
        *(
            '[diagnostics] ood = ["mahalanobis"]',
            'rank = [8, 4, 2, 1] on a matcher and [probes] rank = ["full", 8, 4, 2, 1]',
        ),
        "[probes]",
    ]
    assert lacks['[diagnostics] ood = ["mahalanobis"]'].endswith(TITLES["paper_ood"])
    _, told, rest = text.partition("## What to add to the job")
    assert told
    assert len([line for line in rest.splitlines() if line.startswith("- ")]) == len(lacks)
    assert TITLES["paper_sensitivity"] not in text.replace(rest, "")
    assert "What to add" not in render_without_lacks()


def render_without_lacks():
    from stitchgrid.report.content import ReportTable, Section, SweepReport
    from stitchgrid.report.markdown import render_markdown

    table = ReportTable(caption="Networks", columns=("model",), rows=(("a",),))
    found = Section(title="Your networks", rule="A rule.", query="", command="stitchgrid answer s")
    text = render_markdown([SweepReport(sweep="s", facts=(), networks=table, found=found, sections=(), lacks=())])
    assert "The job has no data for any of them." in text
    return text


@pytest.mark.parametrize("part", [0, 3, 10])
def test_shares_have_wilsons_interval(part):
    from scipy.stats import binomtest

    from stitchgrid.report.content import share

    interval = binomtest(part, 10).proportion_ci(method="wilson")
    low, high = (f"{100 * end:.0f}" for end in (interval.low, interval.high))
    assert share(part, 10) == f"{part} of 10 ({10 * part} %, 95 % interval {low} to {high} %)"
    assert share(0, 0) == "0 of 0"


@pytest.mark.parametrize(("r", "num"), [(0.0, 20), (0.6, 30), (0.9, 60)])
def test_the_interval_of_a_rank_correlation_covers_that_of_the_population(r, num):
    draw, population = np.random.default_rng(5), 6 / np.pi * np.arcsin(r / 2)  # of two normal numbers
    covered = 0
    for _ in range(400):
        x, y = draw.normal(size=(2, num))
        rho = rank_correlation(x, r * x + np.sqrt(1 - r**2) * y).rho
        low, high = rho_interval(rho, num)
        covered += low <= population <= high
    assert 0.91 <= covered / 400 <= 0.98
    assert rho_interval(0.5, 3) is None
    assert rho_interval(1.0, 30) is None
