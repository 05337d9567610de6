"""The view `answers` against the same answers found with numpy and scipy."""

import math
from dataclasses import fields, replace
from time import perf_counter

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from helpers_answers import DRAWS, GROUPS, LAYERS, OOD, TWIN, PlannedCell, Planted, drawn, oracle
from helpers_store import make_row, make_synthetic_store

from stitchgrid.catalog import Catalog, load_question
from stitchgrid.catalog.answers import read_answers
from stitchgrid.catalog.verdict_rules import CHECKS
from stitchgrid.cli import cli
from stitchgrid.store import Store

KEY = ("target_model", "target_layer", "source_model", "matcher", "params", "samples", "seed")
NUMBERS = ("value", "margin", "margin_low", "margin_high", "p", "untrained_value")


def answers(store, view="answers", sweep="planted"):
    with Catalog(store) as catalog:
        rows = catalog.query(f"from {view} where sweep = $sweep", {"sweep": sweep}).to_pylist()
    return {tuple(row[name] for name in KEY): row for row in rows}


def compare(found, expected):
    assert set(found) == set(expected)
    for key, row in found.items():
        one = expected[key]
        assert row["source_layer"] == one["best"].source_layer, key
        for name in NUMBERS:
            assert (row[name] is None) == (one[name] is None), (key, name, row[name], one[name])
            assert row[name] is None or row[name] == pytest.approx(one[name], rel=1e-9, abs=1e-12), (key, name)
        assert (row["runner_up"], row["candidates"]) == (one["runner_up"], one["candidates"]), key
        assert {check["name"]: check["passed"] for check in row["checks"]} == one["checks"], key
        assert [check["name"] for check in row["checks"]] == list(CHECKS)
        assert all(check["detail"].endswith(".") for check in row["checks"])
        assert row["verdict"] == one["verdict"], key


# Drawn at random ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("keep", "spread"), [(1.0, 0.03), (0.7, 0.3)])
def test_answers_are_those_of_numpy_and_scipy(tmp_path, seed, keep, spread):
    planted = drawn(seed, keep=keep, spread=spread)
    found = answers(planted.write(tmp_path))
    compare(found, oracle(planted))
    assert len(found) > 40
    assert {row["verdict"] for row in found.values()} >= {"not supported"} | ({"weak"} if spread < 0.1 else set())


def test_several_sweeps_are_answered_each_as_if_it_were_alone(tmp_path):
    first, second = drawn(1), replace(drawn(1), sweep="second", info={"groups": 5, "shuffles": 3})
    first.write(tmp_path)
    some = replace(second, cells=[cell for cell in second.cells if cell.source_layer != "l0"])
    store = some.write(tmp_path)
    compare(answers(store), oracle(first))
    compare(answers(store, sweep="second"), oracle(some))


def test_cells_that_diverged_are_named_by_the_other_view_alone(tmp_path):
    planted = drawn(4)
    store = planted.write(tmp_path)
    diverged = {cell.cell_id for cell in planted.cells if "diverged" in cell.flags}
    assert diverged
    best = answers(store, "all_answers")
    flagged = [row for row in best.values() if "Flagged: diverged" in row["checks"][-1]["detail"]]
    assert flagged
    assert not any("Flagged: diverged" in row["checks"][-1]["detail"] for row in answers(store).values())


# One answer, looked at closely ----------------------------------------------------------------------------------------

BEST = ("a", "l1", "b", "l1")


def plain(matcher="direct", **changes) -> Planted:
    """Return a sweep into one layer whose best source is beyond doubt: `supported`."""
    rng = np.random.default_rng(7)
    cells = []
    for source in ("a", f"a{TWIN}"):
        for layer in LAYERS:
            gap = abs(LAYERS.index(layer) - 1)
            for kind in dict.fromkeys(("direct", "cka_unbiased", matcher)):
                base = 0.9 - 0.2 * gap if source == "a" else 0.2
                cells.append(_plain_cell(rng, (source, layer, *BEST[2:]), kind, base))
    return Planted(cells=cells, **changes)


def _plain_cell(rng, pair, kind, likeness):
    ends = dict(zip(("source_model", "source_layer", "target_model", "target_layer"), pair, strict=True))
    cell = PlannedCell(**ends, matcher=kind, values={}, seed=0 if kind == "task_loss" else None)
    value = likeness if cell.sign > 0 else 1 - likeness
    values = {cell.score: value}
    if kind in ("direct", "task_loss"):
        values |= {"variance_ratio": 0.9, OOD[0]: 0.5}
    noise = rng.normal(0, 0.002, (2, GROUPS))
    null = list(np.linspace(0.0, 0.05, DRAWS) if cell.sign > 0 else np.linspace(0.95, 1, DRAWS))
    replicates = list(value + noise[0])
    return replace(cell, values=values, replicates=replicates, null=None if kind == "task_loss" else null)


def changed(planted, change, *, where=lambda cell: True):
    """Return the sweep with what `change` makes of the cells that fit."""
    return replace(planted, cells=[change(cell) if where(cell) else cell for cell in planted.cells])


def is_best(cell):
    return cell.pair == BEST and cell.matcher == "direct"


def valued(**values):
    return lambda cell: replace(cell, values={**cell.values, **values})


def with_networks(planted, **changes):
    return replace(planted, models={**planted.models, **changes})


def the_answer(tmp_path, planted, matcher="direct"):
    found = answers(planted.write(tmp_path))
    compare(found, oracle(planted))
    [row] = [row for key, row in found.items() if key[3] == matcher]
    return row | {"checks": {check["name"]: check["passed"] for check in row["checks"]}}, {
        check["name"]: check["detail"] for check in row["checks"]
    }


def test_a_match_beyond_doubt_is_supported(tmp_path):
    row, told = the_answer(tmp_path, plain())
    assert row["verdict"] == "supported"
    assert row["checks"] == {name: None if name == "undenied" else True for name in CHECKS}
    assert (row["source_layer"], row["runner_up"], row["candidates"]) == ("l1", "l0", ["l1"])
    assert row["margin"] == pytest.approx(0.2)
    assert row["p"] == 1 / 41
    assert (row["low"], row["high"]) == (pytest.approx(0.09), pytest.approx(0.11))
    assert "a has an accuracy of 0.9 (chance 0.1), b has" in told["above_chance"]
    assert told["above_shuffled"] == ("With shuffled images the best layer is as similar in 0 of 40 draws: p = 0.0244.")
    assert told["others_agree"] == "1 of 1 other matchers have their best source within one block."


FAILING = {
    "trained": (lambda p: with_networks(p, b={"is_untrained": True}), "not supported", "b: random weights."),
    "above_chance": (
        lambda p: with_networks(p, a={"is_at_chance": True, "accuracy": 0.11}),
        "not supported",
        "a has an accuracy of 0.11 (chance 0.1), which may be chance",
    ),
    "localised": (
        lambda p: changed(
            p, valued(residual=0.1005), where=lambda c: c.pair[:2] == ("a", "l3") and c.matcher == "direct"
        ),
        "weak",
        "some further than one block from the best: l1, l3",
    ),
    "above_untrained": (
        lambda p: changed(p, valued(residual=0.0999), where=lambda c: c.source_model != "a" and c.matcher == "direct"),
        "not supported",
        "The untrained twin reaches 0.0999 (l0), a difference of -0.0001",
    ),
    "others_agree": (
        lambda p: changed(
            p,
            valued(cka_unbiased=0.99),
            where=lambda c: c.matcher == "cka_unbiased" and c.pair[:2] == ("a", "l3"),
        ),
        "weak",
        "0 of 1 other matchers have their best source within one block; cka_unbiased has l3.",
    ),
    "in_distribution": (
        lambda p: changed(p, valued(ood_energy_auroc=0.601), where=is_best),
        "weak",
        "AUROC of 0.5 (mahalanobis), 0.601 (energy)",
    ),
    "not_collapsed": (lambda p: changed(p, valued(variance_ratio=0.2499), where=is_best), "weak", "0.25"),
    "sound": (
        lambda p: changed(p, lambda c: replace(c, flags=("energy_unsound", "subsampled")), where=is_best),
        "weak",
        "Flagged: energy_unsound.",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_every_check_can_fail_alone(tmp_path, name):
    change, expected, detail = FAILING[name]
    row, told = the_answer(tmp_path, change(plain()))
    failed = [check for check, passed in row["checks"].items() if passed is False]
    assert failed == [name]
    assert row["verdict"] == expected
    assert detail in told[name]


def test_the_p_of_the_best_is_that_of_the_best_of_each_draw(tmp_path):
    """Two layers of which each is reached in one other draw: p is 3/41, the smallest single one 1/41."""
    draws = {"l0": 3, "l3": 5}

    def reached(cell):
        null = list(cell.null)
        null[draws[cell.source_layer]] = 0.05
        return replace(cell, null=null)

    planted = changed(
        plain(), reached, where=lambda c: c.matcher == "direct" and c.source_model == "a" and c.source_layer in draws
    )
    row, told = the_answer(tmp_path, planted)
    assert row["p"] == 3 / 41
    assert row["verdict"] == "not supported"
    assert [name for name, passed in row["checks"].items() if passed is False] == ["above_shuffled"]
    assert "as similar in 2 of 40 draws" in told["above_shuffled"]


def test_a_draw_as_similar_as_the_best_counts(tmp_path):
    planted = changed(plain(), lambda c: replace(c, null=[c.values["residual"]] * DRAWS), where=is_best)
    row, _ = the_answer(tmp_path, planted)
    assert row["p"] == 1


def test_a_trained_match_is_held_against_direct_and_never_supported(tmp_path):
    row, told = the_answer(tmp_path / "sound", plain("task_loss"), "task_loss")
    assert (row["verdict"], row["seed"], row["checks"]["undenied"]) == ("weak", 0, True)
    assert told["above_shuffled"] == "Not computed: maps are not trained again on shuffled images."
    denied = changed(plain("task_loss"), valued(residual=0.25), where=is_best)
    row, told = the_answer(tmp_path / "denied", denied, "task_loss")
    assert row["checks"]["undenied"] is False
    assert told["undenied"] == (
        "Direct matching leaves a residual of 0.25 between the same layers; below 0.25 is wanted."
    )


def test_without_classes_chance_does_not_apply_and_needs_no_proof(tmp_path):
    heads = {"a": {"head": "embedding"}, "b": {"head": "regression"}}
    bare = {"accuracy": None, "chance": None, "is_at_chance": None}
    row, told = the_answer(tmp_path, with_networks(plain(), **{name: one | bare for name, one in heads.items()}))
    assert (row["checks"]["above_chance"], row["verdict"]) == (None, "supported")
    assert told["above_chance"].startswith("Does not apply")


def test_of_one_network_without_classes_the_other_counts(tmp_path):
    bare = {"head": "embedding", "accuracy": None, "chance": None, "is_at_chance": None}
    row, told = the_answer(tmp_path, with_networks(plain(), a=bare))
    assert row["checks"]["above_chance"] is True
    assert told["above_chance"] == "b has an accuracy of 0.9 (chance 0.1)."


@pytest.mark.parametrize(
    ("lacking", "unknown"),
    [
        ("replicates", {"localised", "above_untrained"}),
        ("null", {"above_shuffled"}),
        ("twins", {"above_untrained"}),
        ("others", {"others_agree"}),
    ],
)
def test_what_was_not_computed_is_null_and_makes_it_weak(tmp_path, lacking, unknown):
    planted = plain()
    if lacking in ("replicates", "null"):
        planted = changed(planted, lambda cell: replace(cell, **{lacking: None}))
    kept = {
        "twins": lambda cell: cell.source_model == "a",
        "others": lambda cell: cell.matcher == "direct",
    }.get(lacking, lambda cell: True)
    row, told = the_answer(tmp_path, replace(planted, cells=[cell for cell in planted.cells if kept(cell)]))
    assert {name for name, passed in row["checks"].items() if passed is None} == unknown | {"undenied"}
    assert row["verdict"] == ("supported" if lacking == "others" else "weak")
    assert all(told[name].startswith(("Not computed", "The untrained twin reaches")) for name in unknown)


def test_a_twin_that_is_as_good_fails_without_intervals_too(tmp_path):
    change, _, _ = FAILING["above_untrained"]
    row, told = the_answer(tmp_path, changed(change(plain()), lambda cell: replace(cell, replicates=None)))
    assert row["checks"]["above_untrained"] is False
    assert told["above_untrained"].endswith("a difference of -0.0001 without an interval.")


HOSTILE = {
    "another number of groups": lambda cell: replace(cell, replicates=list(cell.replicates)[1:]),
    "no groups": lambda cell: replace(cell, replicates=[]),
    "one group": lambda cell: replace(cell, replicates=[0.5]),
    "a hole": lambda cell: replace(cell, replicates=[None, *list(cell.replicates)[1:]]),
    "nan": lambda cell: replace(cell, replicates=[math.nan, *list(cell.replicates)[1:]]),
    "infinite": lambda cell: replace(cell, replicates=[math.inf, *list(cell.replicates)[1:]]),
    "huge": lambda cell: replace(cell, replicates=[3e38, -3e38, *list(cell.replicates)[2:]]),
    "more groups than there can be": lambda cell: replace(cell, replicates=[0.1] * 2000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_replicates_that_cannot_be_paired_leave_the_difference_unknown(tmp_path, name):
    rival = changed(plain(), HOSTILE[name], where=lambda c: c.pair[:2] == ("a", "l2") and c.matcher == "direct")
    row, _ = the_answer(tmp_path, rival)
    if name != "huge":
        assert (row["candidates"], row["checks"]["localised"]) == (None, None)
    assert row["margin_low"] is not None  # of the other rival


@pytest.mark.parametrize("null", [[], None, [None] + [0.9] * 39, [0.9] * 39, [math.nan] * 40, [0.9] * 39 + [math.inf]])
def test_draws_that_do_not_fit_leave_p_unknown(tmp_path, null):
    planted = changed(
        plain(), lambda c: replace(c, null=null), where=lambda c: c.pair[:2] == ("a", "l3") and c.matcher == "direct"
    )
    row, told = the_answer(tmp_path, planted)
    assert (row["p"], row["checks"]["above_shuffled"]) == (None, None)
    assert told["above_shuffled"] == "Not computed: draws of some source layers are missing or undefined."


def into_direct(source, *layers):
    return lambda cell: cell.matcher == "direct" and cell.source_model == source and cell.source_layer in layers


def sentence_of(store):
    with Catalog(store) as catalog:
        [found] = [one for one in read_answers(catalog, "planted") if one.matcher == "direct"]
    return found.sentence


def test_source_layers_whose_cells_diverged_are_told_and_make_it_weak(tmp_path):
    planted = changed(
        plain(), lambda cell: replace(cell, flags=("diverged",)), where=into_direct("a", "l0", "l2", "l3")
    )
    row, told = the_answer(tmp_path, planted)
    assert (row["verdict"], row["num_sources"], row["checks"]["sound"]) == ("weak", 1, False)
    assert told["sound"] == "Best of 1 of 4 source layers: of the others, 3 diverged."
    assert sentence_of(Store.open(tmp_path)).endswith(f" {told['sound']}")


def test_source_layers_whose_cells_failed_or_are_not_computed_are_told(tmp_path):
    planted = plain()
    [failed] = filter(into_direct("a", "l3"), planted.cells)
    [pending] = filter(into_direct("a", "l2"), planted.cells)
    store = changed(planted, unstored, where=lambda cell: cell in (failed, pending)).write(tmp_path)
    store.write_part(failed.shard, [make_row(failed, None, None, status="failed", error="broken", num_fit=200)])
    [row] = [row for key, row in answers(store).items() if key[3] == "direct"]
    assert row["verdict"] == "weak"
    expected = "Best of 2 of 4 source layers: of the others, 1 failed, 1 not computed yet."
    assert row["checks"][-1]["detail"] == expected
    assert sentence_of(store).endswith(expected)


def unstored(cell):
    """Return the cell as planned, without rows."""
    return Unstored(**{one.name: getattr(cell, one.name) for one in fields(cell)})


class Unstored(PlannedCell):
    def rows(self):
        return []


def test_the_check_against_the_twin_says_why_it_has_no_value(tmp_path):
    twins = into_direct(f"a{TWIN}", *LAYERS)
    diverged = changed(plain(), lambda cell: replace(cell, flags=("diverged",)), where=twins)
    row, told = the_answer(tmp_path / "all", diverged)
    assert (row["verdict"], row["checks"]["above_untrained"]) == ("weak", None)
    assert told["above_untrained"] == "Not computed: of the cells of the untrained twin, 4 diverged."
    one = into_direct(f"a{TWIN}", "l0")
    _, told = the_answer(tmp_path / "one", changed(plain(), lambda cell: replace(cell, flags=("diverged",)), where=one))
    assert told["above_untrained"].endswith("; of its other source layers, 1 diverged.")
    alone = replace(plain(), cells=[cell for cell in plain().cells if not twins(cell)])
    _, told = the_answer(tmp_path / "no cells", alone)
    assert told["above_untrained"] == "Not computed: no cell of the untrained twin has a value."
    own = [cell for cell in alone.cells if cell.source_model == "a"]
    _, told = the_answer(tmp_path / "none", Planted(cells=own, models={"a": {}, "b": {}}))
    assert told["above_untrained"] == "Not computed: there is no untrained twin."


def test_the_sentence_names_r2_beside_the_residual(tmp_path):
    store = changed(plain(), valued(r2=0.81), where=is_best).write(tmp_path)
    assert "r2 is 0.81 (0 is no better than the mean)" in sentence_of(store)


@pytest.mark.parametrize("value", [math.nan, None])
def test_a_value_that_is_none_is_no_candidate(tmp_path, value):
    planted = changed(
        plain(), valued(residual=value), where=lambda c: c.pair[:2] == ("a", "l0") and c.matcher == "direct"
    )
    row, _ = the_answer(tmp_path, planted)
    assert (row["source_layer"], row["runner_up"], row["num_sources"]) == ("l1", "l2", 3)


@pytest.mark.parametrize("value", [math.inf, 1e300])
def test_values_beyond_bounds_do_no_harm(tmp_path, value):
    planted = changed(plain(), valued(residual=value), where=lambda c: c.matcher == "direct")
    found = answers(planted.write(tmp_path))
    [row] = [row for key, row in found.items() if key[3] == "direct"]
    assert row["verdict"] == "not supported"


def test_the_only_source_layer_has_no_runner_up(tmp_path):
    planted = plain()
    row, told = the_answer(
        tmp_path, replace(planted, cells=[cell for cell in planted.cells if cell.source_layer == "l1"])
    )
    assert (row["runner_up"], row["margin"], row["candidates"], row["num_sources"]) == (None, None, ["l1"], 1)
    assert told["localised"] == "No other layer is as good at 95 %."


def test_of_a_tie_the_layer_itself_wins(tmp_path):
    cells = [
        replace(cell, source_model="b", values={**cell.values, "residual": 0.1 + 1e-7 * (cell.source_layer == "l1")})
        for cell in plain().cells
        if cell.matcher == "direct" and cell.source_model == "a"
    ]
    row, _ = the_answer(tmp_path, Planted(cells=cells))
    assert row["source_layer"] == "l1"
    assert row["margin"] == pytest.approx(-1e-7)


def test_too_few_draws_are_told(tmp_path):
    planted = changed(plain(), lambda cell: replace(cell, null=list(cell.null)[:9]))
    row, told = the_answer(tmp_path, planted)
    assert row["p"] == 0.1
    assert told["above_shuffled"].endswith("p = 0.1. A p below 0.05 needs 20 draws.")


def test_a_store_of_before_has_weak_answers(tmp_path):
    with Catalog(make_synthetic_store(tmp_path).store) as catalog:
        rows = catalog.query("from answers").to_pylist()
    assert rows
    for row in rows:
        assert {row[name] for name in ("low", "high", "margin_low", "margin_high", "candidates", "p")} == {None}
        assert row["verdict"] == "weak"
        passed = {check["name"]: check["passed"] for check in row["checks"]}
        assert {passed[name] for name in ("localised", "above_untrained", "above_shuffled")} == {None}


def test_networks_of_which_nothing_is_known_leave_the_checks_open(tmp_path):
    unknown = {"is_untrained": None, "is_at_chance": None, "chance": None, "head": None}
    row = next(iter(answers(with_networks(plain(), a=unknown, b=unknown).write(tmp_path)).values()))
    told = {check["name"]: check for check in row["checks"]}
    assert (told["trained"]["passed"], told["above_chance"]["passed"]) == (None, None)
    assert told["trained"]["detail"].startswith("Not known")
    assert row["verdict"] == "weak"


def test_checks_can_be_unnested_in_sql(tmp_path):
    store = plain().write(tmp_path)
    with Catalog(store) as catalog:
        table = catalog.query(
            "select matcher, c.name, c.passed from (select matcher, unnest(checks) as c from answers) order by all"
        )
        assert table.num_rows == 2 * len(CHECKS)
        assert catalog.query("from answers limit 0").schema.field("candidates").type == pa.list_(pa.string())


# The query best_source ------------------------------------------------------------------------------------------------


def test_best_source_has_the_least_favourable_evidence_of_all_seeds(tmp_path):
    planted = drawn(2)
    expected = oracle(planted)
    with Catalog(planted.write(tmp_path)) as catalog:
        rows = catalog.ask(load_question("best_source")).to_pylist()
    order = ["supported", "weak", "not supported"]
    agreed = 0
    for row in rows:
        key = tuple(
            row[name] for name in ("target_model", "target_layer", "source_model", "matcher", "params", "samples")
        )
        mine = [one for name, one in expected.items() if name[:-1] == key]
        if {one["best"].source_layer for one in mine} != {row["best_source_layer"]}:
            assert {row[name] for name in ("margin", "margin_low", "candidates", "p", "verdict")} == {None}
            continue
        agreed += 1
        worst = min(mine, key=lambda one: one["margin"])
        for name in ("margin", "margin_low", "margin_high"):
            assert row[name] == pytest.approx(worst[name]), (key, name)
        assert len(row["candidates"]) == max(len(one["candidates"]) for one in mine)
        assert row["p"] == pytest.approx(max((one["p"] for one in mine if one["p"] is not None), default=None))
        assert row["verdict"] == max((one["verdict"] for one in mine), key=order.index)
    assert agreed > 40
    assert agreed < len(rows)  # twins have no answers of their own, and seeds may name other layers


def test_a_pipe_gets_no_constant_params_in_a_table_and_twins_come_last(tmp_path):
    store = plain().write(tmp_path)

    def asked(*arguments):
        return CliRunner().invoke(cli, ["query", "best_source", *arguments, "--store", str(store.uri)]).stdout

    assert "params" not in asked()
    assert "params" in asked("--format", "csv")
    sources = [line.split(",")[1] for line in asked("--format", "csv").splitlines()[1:]]
    assert sources == ["a", "a", f"a{TWIN}", f"a{TWIN}"]
    mine = tmp_path / "mine.sql"
    mine.write_text("select 1 as params")
    found = CliRunner().invoke(cli, ["query", str(mine), "--store", str(store.uri)])
    assert "params" in found.stdout


def test_best_source_without_evidence_has_margins_alone(tmp_path):
    with Catalog(make_synthetic_store(tmp_path).store) as catalog:
        rows = catalog.ask(load_question("best_source"), {"matcher": "direct"}).to_pylist()
    for row in rows:
        assert row["margin"] > 0
        assert {row[name] for name in ("margin_low", "margin_high", "candidates", "p")} == {None}
        assert row["verdict"] == "weak"


def test_an_untrained_twin_is_no_other_seed_of_its_network(tmp_path):
    with Catalog(drawn(2).write(tmp_path)) as catalog:
        across = catalog.ask(load_question("paper_sanity_across")).to_pylist()
        seeds = catalog.ask(load_question("seed_correspondence")).to_pylist()
        ood = catalog.ask(load_question("paper_ood")).to_pylist()
    assert {row["num_pairs"] for row in across} == {2}
    assert {(row["source_model"], row["target_model"]) for row in seeds} == {("a", "b"), ("b", "a")}
    [direct] = {row["num_cells"] for row in ood if (row["matcher"], row["relation"]) == ("direct", "corresponding")}
    assert direct <= 2 * len(LAYERS)


def test_an_empty_store_has_no_answers(tmp_path):
    with Catalog(Store.open(tmp_path, create=True)) as catalog:
        assert catalog.query("from answers").num_rows == 0


@pytest.mark.slow
def test_a_hundred_thousand_cells_take_seconds(tmp_path):
    from helpers_big_store import make_big_store

    store = make_big_store(tmp_path, num_sweeps=1, num_layers=16)
    with Catalog(store) as catalog:
        start = perf_counter()
        assert catalog.query("from answers").num_rows == 6400
        assert perf_counter() - start < 30


def rounded(cell):
    """Return the cell with a score of 0 but for rounding, which differs by layer and network, whatever the images."""
    size = 1e-14 * (1 + LAYERS.index(cell.source_layer) + 4 * cell.source_model.endswith(TWIN))
    return replace(cell, values={**cell.values, cell.score: size}, replicates=[size] * GROUPS)


def test_what_differs_by_rounding_alone_is_a_tie(tmp_path):
    """Maps between linear layers leave nothing of one another, trained or not: that says nothing of the networks."""
    planted = changed(plain(), rounded, where=lambda cell: cell.matcher == "direct")
    row, told = the_answer(tmp_path, planted)
    assert row["candidates"] == list(LAYERS)
    assert row["checks"]["localised"] is False
    assert row["checks"]["above_untrained"] is False
    assert row["verdict"] == "not supported"
    assert "a difference of" in told["above_untrained"]
