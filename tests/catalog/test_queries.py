"""The query files that ship, each with an answer that is known."""

import re
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from helpers_flow import run
from helpers_paper import make_paper_store
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
from scipy.stats import spearmanr

from stitchgrid.catalog import VIEWS, Catalog, list_questions, load_question
from stitchgrid.catalog.query_files import parse_question
from stitchgrid.cli import cli
from stitchgrid.errors import QueryError
from stitchgrid.store import Store

QUESTIONS = {question.name: question for question in list_questions()}
PAIR = ("source_model", "source_layer", "target_model", "target_layer")
NO_VALUE = {(FAILED, "cka"), (PENDING, "procrustes")}
SCORES = {"direct": "residual", "task_loss": "accuracy", "cka": "cka", "pwcca": "pwcca", "procrustes": "procrustes"}
TURN = {"direct": -1, "task_loss": 1, "cka": 1, "pwcca": -1, "procrustes": -1}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    with Catalog(make_synthetic_store(tmp_path_factory.mktemp("grid")).store) as catalog:
        yield catalog


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    with Catalog(make_paper_store(tmp_path_factory.mktemp("paper"))) as paper:
        yield paper


def answer(catalog, name, **given):
    return catalog.ask(load_question(name), given).to_pylist()


def similarities(matcher):
    """Return, per layer pair, the similarity that the planted values mean: an oracle without SQL."""
    found = {}
    for cell in planned_cells():
        if cell.matcher == matcher and (cell.pair, matcher) not in NO_VALUE:
            found.setdefault(cell.pair, []).append(TURN[matcher] * value_of(cell, SCORES[matcher]))
    return {pair: float(np.mean(values)) for pair, values in found.items()}


# All query files ------------------------------------------------------------------------------------------------------


def test_enough_questions_ship():
    assert len(QUESTIONS) >= 8


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_query_explains_itself_and_its_sql_is_lower_case(name):
    question = QUESTIONS[name]
    assert re.fullmatch(r"[a-z_]+", name)
    assert question.question.endswith("?")
    assert all(param.description for param in question.params)
    assert "sweep" in {param.name for param in question.params}
    body = re.sub(r"'[^']*'|--.*", "", question.sql)
    assert body == body.lower()
    assert {param.name for param in question.params} == set(re.findall(r"\$(\w+)", body))


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_query_returns_the_columns_of_its_header(name, catalog, paper, tmp_path):
    question = QUESTIONS[name]
    answered = (paper if name.startswith("paper_") else catalog).ask(question)
    assert tuple(answered.column_names) == question.columns
    assert answered.num_rows > 0 or name == "settling"  # its rows are those of test_steps.py
    with Catalog(Store.open(tmp_path, create=True)) as empty:
        assert tuple(empty.ask(question).column_names) == question.columns
        assert empty.ask(question).num_rows == 0


@pytest.mark.parametrize("name", [name for name in QUESTIONS if not name.startswith(("paper_", "settling"))])
def test_one_sweep_of_many_is_answered_as_if_it_were_alone(name, catalog, tmp_path):
    store = make_synthetic_store(tmp_path).store
    tables = plan_tables()
    some = tables["cells"].filter(pa.compute.equal(tables["cells"]["source_model"], "net/0"))
    store.write_plan("part", store.write_job("part", {}), **(tables | {"cells": some}), info={})
    shards = catalog.query("select distinct shard as unit from cells").to_pylist()
    store.journal("part", "launch", shards)
    top = {"top": "10000"} if name == "disagreement" else {}
    with Catalog(store) as both:
        assert rounded(answer(both, name, sweep=SWEEP, **top)) == rounded(answer(catalog, name, **top))
        mixed = rounded(answer(both, name, **top))
        assert [row for row in mixed if row["sweep"] == SWEEP] == rounded(answer(catalog, name, **top))
        if name != "failures":  # the failed cell is not in the other sweep
            assert {row["sweep"] for row in mixed} == {"part", SWEEP}


@pytest.mark.parametrize("name", [name for name in QUESTIONS if name.startswith("paper_")])
def test_two_sweeps_that_share_their_cells_are_answered_each_as_if_it_were_alone(name, paper, tmp_path):
    make_paper_store(tmp_path, sweep="second")
    with Catalog(make_paper_store(tmp_path)) as both:
        alone = rounded(answer(paper, name))
        assert rounded(answer(both, name, sweep="paper")) == alone
        mixed = rounded(answer(both, name))
        assert [row for row in mixed if row["sweep"] == "paper"] == alone
        assert [row | {"sweep": "paper"} for row in mixed if row["sweep"] == "second"] == alone


def rounded(rows):
    """Return rows without the last digits: DuckDB adds in no fixed order."""
    return [{name: round(v, 8) if isinstance(v, float) else v for name, v in row.items()} for row in rows]


# Single questions -----------------------------------------------------------------------------------------------------


def test_the_best_source_of_every_target_layer_is_the_planted_one(catalog):
    rows = answer(catalog, "best_source")
    assert len(rows) == 5 * 4 * 3
    for row in rows:
        pair = (row["source_model"], row["best_source_layer"], row["target_model"], row["target_layer"])
        violated = row["matcher"] == "task_loss" and pair == VIOLATION
        own = row["best_source_layer"] == row["target_layer"]
        assert own != violated
        assert row["metric"] == SCORES[row["matcher"]]
        assert TURN[row["matcher"]] * row["score"] == pytest.approx(similarities(row["matcher"])[pair])
        assert (row["accuracy"] is None) == (row["matcher"] not in ("direct", "task_loss"))
    ties = [row for row in rows if row["num_tied"] > 1]
    assert [(row["source_model"], row["target_layer"], row["matcher"]) for row in ties] == [
        (TIE[0], TIE[3], "procrustes")
    ]
    fewer = [(row["matcher"], row["source_model"], row["target_model"]) for row in rows if row["num_sources"] == 2]
    assert fewer == [("cka", "net/1", "net/0"), ("procrustes", "net/1", "net/1")]


def test_of_tied_sources_the_layer_itself_is_named_else_the_most_similar(catalog):
    for row in answer(catalog, "best_source", matcher="direct", tolerance="10"):
        assert row["num_tied"] == row["num_sources"] == 3
        if row["source_model"] == row["target_model"]:
            assert row["best_source_layer"] == row["target_layer"]
        else:
            to_target = [(row["source_model"], layer, row["target_model"], row["target_layer"]) for layer in LAYERS]
            assert row["best_source_layer"] == max(to_target, key=similarities("direct").get)[1]


def test_best_source_can_be_asked_of_one_matcher(catalog):
    rows = answer(catalog, "best_source", matcher="cka")
    assert {row["matcher"] for row in rows} == {"cka"}
    assert len(rows) == 12


def test_the_planted_disagreement_comes_first(catalog):
    rows = answer(catalog, "disagreement", top="5")
    assert len(rows) == 5
    assert tuple(rows[0][name] for name in PAIR) == VIOLATION
    assert (rows[0]["first_rank"], rows[0]["second_rank"]) == (1, 3)
    accuracy = {kind: similarities_of(kind, "accuracy") for kind in ("task_loss", "direct")}
    oracle = {pair: accuracy["task_loss"][pair] - accuracy["direct"][pair] for pair in accuracy["direct"]}
    largest = sorted((abs(value) for value in oracle.values()), reverse=True)[:5]
    assert [abs(row["difference"]) for row in rows] == pytest.approx(largest)
    for row in rows:
        assert row["difference"] == pytest.approx(row["first_accuracy"] - row["second_accuracy"])


def similarities_of(matcher, metric):
    found = {}
    for cell in planned_cells():
        if cell.matcher == matcher:
            found.setdefault(cell.pair, []).append(value_of(cell, metric))
    return {pair: float(np.mean(values)) for pair, values in found.items()}


def test_matchers_without_accuracy_disagree_by_rank(catalog):
    rows = answer(catalog, "disagreement", first="cka", second="task_loss", top="1")
    assert rows[0]["difference"] is None
    gap = abs(rows[0]["first_rank"] - rows[0]["second_rank"])
    assert gap == 2
    assert tuple(rows[0][name] for name in PAIR) == VIOLATION


def test_the_planted_violation_is_the_only_one(catalog):
    rows = answer(catalog, "diagonal_violations")
    assert len(rows) == 2 * 5
    violated = [row for row in rows if row["num_violations"]]
    assert [(row["model"], row["matcher"], row["num_violations"], row["violations"]) for row in violated] == [
        ("net/0", "task_loss", 1, ["conv1 <- block2"])
    ]
    assert all((row["num_layers"], row["num_judged"]) == (3, 3) for row in rows)
    missing = [(row["model"], row["matcher"], row["num_missing"]) for row in rows if row["num_missing"]]
    assert missing == [("net/1", "procrustes", 1)]


def test_a_tie_within_tolerance_is_no_violation(catalog):
    everything = answer(catalog, "diagonal_violations", tolerance="10")
    assert sum(row["num_violations"] for row in everything) == 0


def test_a_layer_whose_match_with_itself_is_missing_is_not_judged(tmp_path):
    store = Store.open(tmp_path, create=True)
    store.write_plan(SWEEP, store.write_job(SWEEP, {}), **plan_tables(), info={})
    own = ("net/0", "conv1", "net/0", "conv1")
    cells = [find_cell((*own[:1], layer, *own[2:]), "cka") for layer in LAYERS[1:]]
    cells += [find_cell((*own[:1], layer, "net/0", "block1"), "cka") for layer in LAYERS]
    store.write_part("s", [make_row(cell, "cka", 0.5) for cell in cells])
    with Catalog(store) as catalog:
        [row] = [row for row in answer(catalog, "diagonal_violations") if row["num_judged"]]
        assert (row["model"], row["matcher"]) == ("net/0", "cka")
        assert (row["num_layers"], row["num_judged"], row["num_violations"], row["num_missing"]) == (3, 1, 0, 4)
        assert len(answer(catalog, "diagonal_violations")) == 10  # those not begun are listed too
        judged = {row["target_layer"]: row["violation"] for row in answer(catalog, "diagonal_layers")}
        assert judged == {"conv1": None, "block1": False}


def test_the_layer_that_wins_instead_is_named(catalog):
    rows = answer(catalog, "diagonal_layers", matcher="task_loss")
    assert len(rows) == 6
    [row] = [row for row in rows if row["violation"]]
    assert (row["model"], row["target_layer"], row["best_source_layer"], row["own_rank"]) == (
        "net/0",
        "conv1",
        "block2",
        2,
    )
    assert row["best_score"] == row["best_accuracy"] == pytest.approx(0.9495)
    assert row["own_score"] == row["own_accuracy"] == pytest.approx(0.8995)
    [tie] = [r for r in answer(catalog, "diagonal_layers", matcher="procrustes") if r["target_layer"] == TIE[3]][1:]
    assert (tie["model"], tie["best_source_layer"], tie["violation"]) == ("net/1", TIE[3], False)


def test_corresponding_layers_of_two_seeds_match_best(catalog, tmp_path):
    rows = answer(catalog, "seed_correspondence")
    assert len(rows) == 2 * 5
    assert all((row["num_judged"], row["num_violations"], row["violations"]) == (3, 0, []) for row in rows)
    store = make_synthetic_store(tmp_path).store
    better = find_cell(("net/0", "block2", "net/1", "conv1"), "pwcca")
    store.write_part("early", [make_row(better, "pwcca", -1.0, created_at="2000")])
    with Catalog(store) as planted:
        violated = [row for row in answer(planted, "seed_correspondence") if row["num_violations"]]
        assert [(row["source_model"], row["target_model"], row["matcher"]) for row in violated] == [
            ("net/0", "net/1", "pwcca")
        ]
        assert violated[0]["violations"] == ["conv1 <- block2"]


def test_depths_correspond_as_the_planted_best_sources_do(catalog):
    depth = {name: k / (len(LAYERS) - 1) for k, name in enumerate(LAYERS)}
    for row in answer(catalog, "depth_correspondence", within="true"):
        by_target = {}
        for (f, source, g, target), value in similarities(row["matcher"]).items():
            if (f, g) == (row["source_model"], row["target_model"]):
                by_target.setdefault(target, {})[source] = value
        best = {
            target: max(sources, key=lambda source: (sources[source], -abs(depth[source] - depth[target])))
            for target, sources in by_target.items()
        }
        gaps = [depth[source] - depth[target] for target, source in best.items()]
        assert row["num_target_layers"] == len(best)
        assert row["mean_depth_gap"] == pytest.approx(np.mean(gaps))
        assert row["mean_distance"] == pytest.approx(np.mean(np.abs(gaps)))
        spread = [np.mean([abs(depth[s] - depth[t]) for s in sources]) for t, sources in by_target.items()]
        assert row["chance_distance"] == pytest.approx(np.mean(spread))
        constant = len(set(best.values())) == 1
        wanted = None if constant else spearmanr([depth[t] for t in best], [depth[s] for s in best.values()])[0]
        assert row["rank_correlation"] == (None if constant else pytest.approx(wanted))


def test_networks_of_another_architecture_do_not_correspond(tmp_path):
    store = Store.open(tmp_path, create=True)
    tables = plan_tables()
    other = pa.array([f"a{number}" for number in range(len(MODELS))])
    models = tables["models"]
    models = models.set_column(models.schema.get_field_index("architecture"), "architecture", other)
    store.write_plan(SWEEP, store.write_job(SWEEP, {}), **(tables | {"models": models}), info={})
    store.write_part("s", [make_row(cell, "cka", 0.5) for cell in planned_cells() if cell.matcher == "cka"])
    with Catalog(store) as catalog:
        assert answer(catalog, "seed_correspondence") == []


def test_a_network_is_most_like_itself(catalog):
    rows = answer(catalog, "model_pairs")
    assert len(rows) == 5 * 4
    for matcher in SCORES:
        mine = [row for row in rows if row["matcher"] == matcher]
        oracle = similarities(matcher)
        for row in mine:
            pairs = {p: v for p, v in oracle.items() if (p[0], p[2]) == (row["source_model"], row["target_model"])}
            best = [max(v for p, v in pairs.items() if p[3] == layer) for layer in LAYERS]
            assert TURN[matcher] * row["mean_best"] == pytest.approx(np.mean(best))
            assert TURN[matcher] * row["mean_all"] == pytest.approx(np.mean(list(pairs.values())))
            assert (row["num_target_layers"], row["num_layer_pairs"]) == (3, len(pairs))
        turned = [TURN[matcher] * row["mean_best"] for row in mine]
        assert turned == sorted(turned, reverse=True)
        assert {row["source_model"] == row["target_model"] for row in mine[:2]} == {True}
    assert len(answer(catalog, "model_pairs", within="false")) == 5 * 2


def test_agreement_is_spearmans_rank_correlation(catalog):
    for which, keep in (
        ("all", lambda pair: True),
        ("within", lambda pair: pair[0] == pair[2]),
        ("across", lambda pair: pair[0] != pair[2]),
    ):
        rows = {(r["first_matcher"], r["second_matcher"]): r for r in answer(catalog, "matcher_agreement", pairs=which)}
        assert len(rows) == 10
        for first, second in combinations(sorted(SCORES), 2):
            x, y = similarities(first), similarities(second)
            common = [pair for pair in x if pair in y and keep(pair)]
            oracle = spearmanr([round(x[p], 9) for p in common], [round(y[p], 9) for p in common]).statistic
            assert rows[first, second]["spearman"] == pytest.approx(oracle, abs=1e-9)
            assert rows[first, second]["num_layer_pairs"] == len(common)


def test_agreement_with_a_constant_is_unknown(tmp_path):
    store = Store.open(tmp_path, create=True)
    store.write_plan(SWEEP, store.write_job(SWEEP, {}), **plan_tables(), info={})
    store.write_part("a", [make_row(cell, "cka", 0.5) for cell in planned_cells() if cell.matcher == "cka"])
    moving = [cell for cell in planned_cells() if cell.matcher == "pwcca"]
    store.write_part("b", [make_row(cell, "pwcca", number / 99) for number, cell in enumerate(moving)])
    with Catalog(store) as catalog:
        [row] = answer(catalog, "matcher_agreement")
        assert (row["spearman"], row["num_layer_pairs"]) == (None, 36)


def test_the_planted_failure_is_named_with_its_reason(catalog):
    [row] = answer(catalog, "failures")
    assert (row["status"], row["error"], row["num_cells"]) == ("failed", ERROR, 1)
    assert (row["matchers"], row["attempts"]) == (["cka"], 2)
    assert (row["example_source"], row["example_target"]) == ("net/1 block2", "net/0 conv1")
    assert row["example_cell_id"] == find_cell(FAILED, "cka").cell_id


def test_progress_adds_up(catalog):
    rows = {row["matcher"]: row for row in answer(catalog, "progress")}
    states = ("done", "failed", "quarantined", "running", "pending")
    assert [rows["(all)"][state] for state in states] == [214, 1, 0, 0, 1]
    assert rows["(all)"]["percent_done"] == 99.1
    assert [rows["cka"][state] for state in states] == [35, 1, 0, 0, 0]
    assert [rows["procrustes"][state] for state in states] == [35, 0, 0, 0, 1]
    for name in (*states, "num_cells"):
        assert sum(rows[matcher][name] for matcher in SCORES) == rows["(all)"][name]


def test_a_matrix_has_every_layer_pair_and_shows_what_is_missing(catalog):
    rows = answer(catalog, "matrix")
    assert len(rows) == 36
    for row in rows:
        cell = find_cell(tuple(row[name] for name in PAIR), "direct")
        assert row["value"] == value_of(cell, "residual")
        assert LAYERS[row["source_index"]] == row["source_layer"]
    holes = [row for row in answer(catalog, "matrix", matcher="cka", metric="cka") if row["value"] is None]
    assert [(tuple(row[name] for name in PAIR), row["status"]) for row in holes] == [(FAILED, "failed")]
    assert len(answer(catalog, "matrix", matcher="task_loss", metric="accuracy")) == 72


def test_flagged_cells_are_listed(catalog):
    [row] = answer(catalog, "flags", flag=FLAG)
    assert tuple(row[name] for name in PAIR) == FLAGGED
    assert row["metrics"] == ["accuracy", "negative_mass", "residual"]
    undefined = answer(catalog, "flags", flag="undefined")
    assert {tuple(row["metrics"]) for row in undefined} == {("negative_mass",)}
    assert len(undefined) == 3 * 12
    assert len(answer(catalog, "flags")) == len(undefined) + 1


def test_the_cost_is_counted_once_a_cell(catalog):
    rows = {row["matcher"]: row for row in answer(catalog, "cost")}
    assert rows["direct"]["total_seconds"] == 36 * 0.5
    assert rows["task_loss"]["total_seconds"] == 72 * 0.5
    assert rows["cka"]["total_seconds"] == 35 * 0.125
    assert sum(row["percent"] for row in rows.values()) == pytest.approx(100, abs=0.3)


def test_the_networks_are_listed_with_their_accuracy(catalog):
    rows = answer(catalog, "networks")
    assert [(row["model"], row["accuracy"], row["num_layers"]) for row in rows] == [
        ("net/0", 0.9, 3),
        ("net/1", 0.89, 3),
    ]


# Headers and parameters -----------------------------------------------------------------------------------------------

HEADER = """-- Is it so?
-- More about it.
-- param sweep = ''  which sweep
-- param name = 'it''s'
-- param top = 20  how many
-- param limit = 1e-6  a number
-- param sure = true  or not
-- param must  no default
-- columns: a, b
-- columns: c
select 1
"""


def test_a_header_is_read():
    question = parse_question("q", HEADER)
    assert (question.question, question.details, question.columns) == ("Is it so?", "More about it.", ("a", "b", "c"))
    assert [(p.name, p.default, p.description) for p in question.params] == [
        ("sweep", "", "which sweep"),
        ("name", "it's", ""),
        ("top", 20, "how many"),
        ("limit", 1e-6, "a number"),
        ("sure", True, "or not"),
        ("must", None, "no default"),
    ]


def test_parameters_take_the_type_of_their_default():
    given = {"must": "5", "top": "3", "limit": "2", "sure": "FALSE"}
    bound = parse_question("q", HEADER).bind(given)
    assert bound == {"sweep": "", "name": "it's", "top": 3, "limit": 2.0, "sure": False, "must": "5"}
    assert type(bound["limit"]) is float


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"query 'q' needs a value for 'must'; give it as --param must=VALUE"),
        ({"must": "x", "tpo": "3"}, r"query 'q' has no parameter 'tpo'; did you mean 'top'"),
        (
            {"must": "x", "top": "many"},
            r"'top' of query 'q' must be a whole number, got 'many'; for example --param top=20",
        ),
        ({"must": "x", "top": "1.5"}, r"'top' of query 'q' must be a whole number, got '1\.5'"),
        ({"must": "x", "limit": "small"}, r"'limit' of query 'q' must be a number, got 'small'"),
        ({"must": "x", "sure": "maybe"}, r"must be true or false, got 'maybe'; for example --param sure=true"),
    ],
)
def test_values_that_do_not_fit_are_refused(given, message):
    with pytest.raises(QueryError, match=message):
        parse_question("q", HEADER).bind(given)


@pytest.mark.parametrize("line", ["-- param top = many", "-- param Top = 1", "-- param a b = 1"])
def test_a_param_line_that_cannot_be_understood_is_refused(line):
    with pytest.raises(QueryError, match=r"query 'q': cannot understand '-- param .*write '-- param NAME = DEFAULT"):
        parse_question("q", f"-- Why?\n{line}\nselect 1")


def test_an_unknown_query_is_refused_with_the_nearest():
    with pytest.raises(QueryError, match=r"no query 'best_sourse'; did you mean 'best_source'.*ends in \.sql"):
        load_question("best_sourse")


def test_a_query_file_is_read_from_its_path(catalog, tmp_path):
    path = tmp_path / "mine.sql"
    path.write_text(
        "-- How many cells?\n-- param matcher = 'cka'\nselect count(*) as n from cells where matcher = $matcher"
    )
    question = load_question(str(path))
    assert question.question == "How many cells?"
    assert catalog.ask(question).to_pylist() == [{"n": 36}]
    assert catalog.ask(question, {"matcher": "task_loss"}).to_pylist() == [{"n": 72}]
    path.write_text("select 1 as n")
    assert catalog.ask(load_question(str(path))).to_pylist() == [{"n": 1}]


def test_a_query_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(QueryError, match=r"cannot read the query file .*none\.sql: No such file"):
        load_question(str(tmp_path / "none.sql"))
    (tmp_path / "bad.sql").write_bytes(b"\xff\xfe")
    with pytest.raises(QueryError, match="not UTF-8 text"):
        load_question(str(tmp_path / "bad.sql"))


def test_a_parameter_that_the_header_does_not_declare_is_refused(catalog):
    with pytest.raises(QueryError, match=r"uses \$top, which its header does not declare; add a line '-- param top"):
        catalog.ask(parse_question("q", "-- Why?\nselect $top"))


def test_a_declared_parameter_may_be_unused(catalog):
    assert catalog.ask(parse_question("q", "-- Why?\n-- param top = 3\nselect 1 as a")).num_rows == 1


def test_an_unknown_sweep_is_refused_with_the_nearest(catalog):
    with pytest.raises(QueryError, match=r"no planned sweep 'synthetik' in the store; did you mean 'synthetic'"):
        answer(catalog, "progress", sweep="synthetik")


def test_a_query_file_with_broken_sql_is_refused(catalog):
    with pytest.raises(QueryError, match=r"DuckDB cannot run query 'q': Parser Error"):
        catalog.ask(parse_question("q", "select 1 where"))
    with pytest.raises(QueryError, match="only statements that read"):
        catalog.ask(parse_question("q", "drop view results"))


# The commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return make_synthetic_store(tmp_path_factory.mktemp("grid")).store.uri


def test_a_query_is_described_with_all_there_is_to_it(grid):
    said = run("query", "matrix", "--describe", "--store", grid).stdout
    for part in (
        "matrix: What is the value of one metric for every layer pair",
        "--param metric=residual  one of its metrics",
        "status",
        "SQL:\nselect\n    c.sweep",
    ):
        assert part in said
    assert "-- param" not in said


@pytest.mark.parametrize(
    ("question", "param", "told"),
    [
        ("best_source", "matcher=CKA", r"no matcher 'CKA' in the store; .*'?cka"),
        ("matrix", "metric=residul", r"no metric 'residul' in the store; did you mean 'residual'\?"),
        ("flags", "flag=saturatd", r"no flag 'saturatd' in the store"),
        ("best_source", "sweep=x", r"no planned sweep 'x' in the store"),
    ],
)
def test_a_matcher_metric_or_flag_that_no_cell_has_is_refused_with_the_nearest(grid, question, param, told):
    assert re.search(told, run("query", question, "--param", param, "--store", grid, code=2).output)


def test_a_default_that_a_store_lacks_is_no_error(catalog):
    assert answer(catalog, "matrix", matcher="cka", metric="cka")
    assert answer(catalog, "matrix", matcher="direct")


def test_statements_come_as_they_stand_from_files_and_from_stdin(grid, tmp_path):
    text = "select count(*) as n from cells"
    (tmp_path / "mine.sql").write_text(text)
    shown = run("sql", text, "--format", "csv", "--store", grid).stdout
    assert run("sql", "-f", tmp_path / "mine.sql", "--format", "csv", "--store", grid).stdout == shown
    piped = CliRunner().invoke(cli, ["sql", "-", "--format", "csv", "--store", grid], input=text)
    assert (piped.exit_code, piped.stdout) == (0, shown)
    assert 'give one statement: "SELECT ...", - for stdin, or -f FILE' in run("sql", "--store", grid, code=2).output
    assert "cannot read the statement from" in run("sql", "-f", tmp_path / "none.sql", "--store", grid, code=2).output


def test_tables_are_the_views(catalog):
    assert [row["name"] for row in catalog.query("SHOW TABLES;").to_pylist()] == list(VIEWS)


def test_a_file_is_of_the_format_that_its_name_says(grid, tmp_path):
    run("query", "best_source", "--out", tmp_path / "best.csv", "--store", grid)
    assert (tmp_path / "best.csv").read_text().startswith("sweep,source_model,target_model,matcher,")
