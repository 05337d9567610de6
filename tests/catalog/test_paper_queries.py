"""Queries that test an index, against answers recomputed from the planted values without SQL."""

from itertools import combinations

import numpy as np
import pytest
from helpers_paper import (
    ACCURACY,
    LAYERS,
    MODELS,
    ON_THE_LINE,
    OOD,
    PROBES,
    RANKS,
    TIE,
    UNASKED,
    UNSCORED,
    VALUES,
    WIDTHS,
    WITHOUT_DIRECT,
    WITHOUT_RELATIVE,
    make_paper_store,
    paper_cells,
)

from stitchgrid.catalog import Catalog, load_question

SCORE = {"direct": "residual", "task_loss": "accuracy", "cka": "cka"}
PAIR = ("source_model", "source_layer", "target_model", "target_layer")
TURN = {"direct": -1, "task_loss": 1, "cka": 1}
SEEDS_OF_ONE = ("net/0", "net/1")
WITHIN = [(model, model) for model in MODELS]
ACROSS = [(f, g) for f in SEEDS_OF_ONE for g in SEEDS_OF_ONE if f != g]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    with Catalog(make_paper_store(tmp_path_factory.mktemp("grid"))) as catalog:
        yield catalog


def answer(catalog, name, **given):
    return catalog.ask(load_question(name), given).to_pylist()


def mean_over_seeds(matcher, metric):
    """Return the metric of each layer pair, whole sources only."""
    found = {}
    for (cell, stored), value in VALUES.items():
        if (cell.matcher, cell.rank, stored) == (matcher, None, metric) and value is not None:
            found.setdefault(cell.pair, []).append(value)
    return {pair: float(np.mean(values)) for pair, values in found.items()}


def cells_of(matcher):
    """Return the metrics of each of the matcher's cells that has any."""
    found = {}
    for (cell, metric), value in VALUES.items():
        if cell.matcher == matcher:
            found.setdefault(cell, {})[metric] = value
    return found


# Sanity grids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "pairs"), [("paper_sanity_within", WITHIN), ("paper_sanity_across", ACROSS)])
def test_violations_of_the_sanity_grids_are_counted_per_matcher(catalog, name, pairs):
    rows = {row["matcher"]: row for row in answer(catalog, name)}
    assert set(rows) == set(SCORE)
    for matcher, row in rows.items():
        score, accuracy = mean_over_seeds(matcher, SCORE[matcher]), mean_over_seeds(matcher, "accuracy")
        own_scores, best_scores, best_accuracies, steps, chances = [], [], [], [], []
        for f, g in pairs:
            for target in LAYERS:
                sources = {i: TURN[matcher] * score[f, i, g, target] for i in LAYERS if (f, i, g, target) in score}
                best = max(sources, key=sources.get)
                if sources[best] <= sources[target] + 1e-6:
                    best = target
                own_scores.append(score[f, target, g, target])
                best_scores.append(score[f, best, g, target])
                best_accuracies.append(accuracy.get((f, best, g, target)))
                steps.append(LAYERS.index(best) - LAYERS.index(target))
                chances.append(1 - 1 / len(sources))
        assert row["num_judged"] == len(pairs) * len(LAYERS)
        assert row["num_violations"] == sum(map(bool, steps))
        assert row["violation_share"] == pytest.approx(np.mean([bool(step) for step in steps]))
        assert row["chance_share"] == pytest.approx(np.mean(chances))
        assert (row["num_later"], row["num_earlier"]) == (sum(s > 0 for s in steps), sum(s < 0 for s in steps))
        assert row["own_score"] == pytest.approx(np.mean(own_scores))
        assert row["best_score"] == pytest.approx(np.mean(best_scores))
        if matcher == "cka":
            assert row["own_accuracy"] is None
            assert row["best_accuracy"] is None
        else:
            assert row["best_accuracy"] == pytest.approx(np.mean(best_accuracies))


def test_the_sanity_grids_count_what_the_queries_of_single_networks_count(catalog):
    for name, single in (
        ("paper_sanity_within", "diagonal_violations"),
        ("paper_sanity_across", "seed_correspondence"),
    ):
        counted = {}
        for row in answer(catalog, single):
            if "rank" not in row["params"]:
                counted[row["matcher"]] = counted.get(row["matcher"], 0) + row["num_violations"]
        assert {row["matcher"]: row["num_violations"] for row in answer(catalog, name)} == counted


def test_a_tie_that_includes_the_layer_itself_is_forgiven(catalog):
    cka = mean_over_seeds("cka", "cka")
    assert cka[TIE] == cka[TIE[2:] + TIE[2:]] == max(cka[TIE[0], layer, *TIE[2:]] for layer in LAYERS)
    everything = answer(catalog, "paper_sanity_within", tolerance="10")
    assert {row["num_violations"] for row in everything} == {0}
    assert all(row["own_score"] == row["best_score"] for row in everything)


def test_sources_of_reduced_rank_take_no_part_in_the_grids(catalog):
    for name in ("paper_sanity_within", "paper_sanity_across", "paper_monotonicity"):
        assert not any("rank" in row["params"] for row in answer(catalog, name))


# Monotonicity ---------------------------------------------------------------------------------------------------------


def test_triples_in_which_a_far_layer_is_more_alike_are_counted(catalog):
    rows = answer(catalog, "paper_monotonicity")
    assert len(rows) == len(SCORE) * 2 * (1 + len(MODELS))
    for row in rows:
        score = mean_over_seeds(row["matcher"], SCORE[row["matcher"]])
        models = MODELS if row["model"] == "(all)" else [row["model"]]
        failures = []
        for model in models:
            for triple in combinations(LAYERS, 3):
                ij, jk, ik = (
                    score.get((model, *pair[:1], model, *pair[1:]))
                    for pair in (ends if row["direction"] == "forward" else ends[::-1] for ends in _ends(triple))
                )
                if None not in (ij, jk, ik):
                    turn = TURN[row["matcher"]]
                    failures.append([turn * ik > turn * ij + 1e-6, turn * ik > turn * jk + 1e-6])
        assert row["num_triples"] == len(failures)
        assert row["num_violations"] == sum(map(any, failures))
        assert row["violation_share"] == pytest.approx(np.mean([any(one) for one in failures]))
        assert row["conformity"] == pytest.approx(1 - np.mean(failures))
    assert {row["num_violations"] for row in answer(catalog, "paper_monotonicity", tolerance="10")} == {0}


def _ends(triple):
    i, j, k = triple
    return (i, j), (j, k), (i, k)


# Probes ---------------------------------------------------------------------------------------------------------------


def test_sources_of_lower_rank_are_set_against_what_their_probes_lose(catalog):
    rows = answer(catalog, "paper_sensitivity")
    wanted = {
        (cell.source_model, cell.source_layer, cell.rank): value
        for (cell, _), value in VALUES.items()
        if cell.rank is not None and cell.rank < WIDTHS[LAYERS.index(cell.source_layer)]
    }
    assert len(wanted) == len(MODELS) * (2 + 3 + 3 + 4)  # ranks below the widths 4, 8, 8 and 16
    assert {(row["model"], row["layer"], row["rank"]): row["score"] for row in rows} == wanted
    for row in rows:
        assert (row["matcher"], row["params"], row["dissimilarity"]) == ("cka", "{}", -row["score"])
        whole, low = PROBES[row["model"], row["layer"], None], PROBES[row["model"], row["layer"], row["rank"]]
        assert row["accuracy_loss"] == pytest.approx(whole - low)
        assert row["full_accuracy"] == whole
        assert row["width"] == WIDTHS[LAYERS.index(row["layer"])]
    ranks = [row["rank"] for row in rows if (row["model"], row["layer"]) == ("net/0", "d")]
    assert ranks == sorted(RANKS, reverse=True)


def test_layers_of_two_seeds_are_set_against_the_gap_between_their_probes(catalog):
    rows = answer(catalog, "paper_specificity")
    found = {(row["matcher"], *(row[name] for name in PAIR)): row for row in rows}
    assert len(found) == len(rows)
    for matcher, metric in SCORE.items():
        score = mean_over_seeds(matcher, metric)
        pairs = [pair for pair in score if (pair[0], pair[2]) in ACROSS]
        assert len(pairs) == 2 * 16
        for pair in pairs:
            row = found.pop((matcher, *pair))
            assert row["dissimilarity"] == pytest.approx(-TURN[matcher] * score[pair])
            source, target = PROBES[*pair[:2], None], PROBES[*pair[2:], None]
            assert (row["source_accuracy"], row["target_accuracy"]) == (source, target)
            assert row["accuracy_gap"] == pytest.approx(abs(source - target))
    assert found == {}


def test_without_probes_nothing_is_set_against_them(tmp_path):
    with Catalog(make_paper_store(tmp_path, probes=False)) as catalog:
        assert answer(catalog, "paper_sensitivity") == answer(catalog, "paper_specificity") == []


# Out of the distribution ----------------------------------------------------------------------------------------------


def relation(pair):
    f, i, g, j = pair
    if f == g:
        return "self" if i == j else "within"
    return "corresponding" if {f, g} == set(SEEDS_OF_ONE) and i == j else "across"


@pytest.mark.parametrize("tolerance", [0.1, 0.3])
def test_verdicts_on_the_distribution_are_counted_by_relation(catalog, tolerance):
    rows = answer(catalog, "paper_ood", tolerance=str(tolerance))
    assert [row["relation"] for row in rows] == ["self", "within", "corresponding", "across"] * 2
    for row in rows:
        found = [
            metrics
            for cell, metrics in cells_of(row["matcher"]).items()
            if relation(cell.pair) == row["relation"] and OOD[0] in metrics
        ]
        scores = [metrics[OOD[0]] for metrics in found if metrics[OOD[0]] is not None]
        assert row["detector"] == "mahalanobis"
        assert (row["num_cells"], row["num_scored"]) == (len(found), len(scores))
        assert row["num_in"] == sum(abs(score - 0.5) <= tolerance for score in scores)
        assert row["num_left"] == sum(score > 0.5 + tolerance for score in scores)
        assert row["num_collapsed"] == sum(score < 0.5 - tolerance for score in scores)
        assert row["num_in"] + row["num_left"] + row["num_collapsed"] == row["num_scored"]
        assert row["mean_auroc"] == pytest.approx(np.mean(scores))
        fpr95 = [metrics[OOD[1]] for metrics in found if metrics[OOD[1]] is not None]
        assert row["mean_fpr95"] == pytest.approx(np.mean(fpr95))
        assert row["mean_accuracy"] == pytest.approx(np.mean([metrics["accuracy"] for metrics in found]))


def test_an_auroc_on_the_line_is_in_the_distribution_and_one_that_is_undefined_is_nowhere(catalog):
    values = {cell.pair: metrics[OOD[0]] for cell, metrics in cells_of("direct").items()}
    assert (values[ON_THE_LINE], values[ON_THE_LINE[2:] + ON_THE_LINE[:2]], values[UNSCORED]) == (0.6, 0.4, None)
    [row] = [r for r in answer(catalog, "paper_ood") if (r["matcher"], r["relation"]) == ("direct", "corresponding")]
    assert row["num_in"] >= 2
    [row] = [r for r in answer(catalog, "paper_ood") if (r["matcher"], r["relation"]) == ("direct", "across")]
    assert row["num_cells"] == row["num_scored"]
    [row] = [r for r in answer(catalog, "paper_ood") if (r["matcher"], r["relation"]) == ("direct", "within")]
    assert row["num_cells"] == row["num_scored"] + 1


# Misleading -----------------------------------------------------------------------------------------------------------


def judge(cell, metrics, residual, *, claim=0.8, limit=0.25, ood=0.1):
    """Return the denials by direct and by the detector, the claim, and the verdict: all in plain words."""
    relative = metrics.get("relative_accuracy", metrics["accuracy"] / ACCURACY[cell.target_model])
    direct = None if residual is None else residual >= limit
    detector = None if metrics.get(OOD[0]) is None else abs(metrics[OOD[0]] - 0.5) > ood
    known = [one for one in (direct, detector) if one is not None]
    verdict = False if relative < claim else all(known) if known else None
    return direct, detector, relative >= claim, verdict


@pytest.mark.parametrize("limits", [{}, {"claim": 0.95, "residual": 0.1, "ood": 0.3}])
def test_misleading_cells_claim_what_all_that_was_computed_denies(catalog, limits):
    given = {name: str(value) for name, value in limits.items()}
    rows = answer(catalog, "misleading", all="true", **given)
    cells, residual = cells_of("task_loss"), mean_over_seeds("direct", "residual")
    assert len(rows) == len(cells) == 2 * 9 * 16
    found = {(*(row[name] for name in PAIR), row["seed"]): row for row in rows}
    for cell, metrics in cells.items():
        row = found[*cell.pair, cell.seed]
        wanted = judge(
            cell,
            metrics,
            residual.get(cell.pair),
            **{{"residual": "limit"}.get(name, name): value for name, value in limits.items()},
        )
        told = row["denied_by_direct"], row["denied_by_mahalanobis"], row["claims"], row["misleading"]
        assert told == wanted
        assert row["direct_residual"] == residual.get(cell.pair)
        assert row["stitch_residual"] == metrics["residual"]
        assert row["ood_energy_auroc"] is row["denied_by_energy"] is None
    short = answer(catalog, "misleading", **given)
    assert 0 < len(short) < len(rows)
    assert short == [row for row in rows if row["misleading"]]


def test_what_was_not_computed_denies_nothing_and_is_null(catalog):
    rows = {(*(row[name] for name in PAIR), row["seed"]): row for row in answer(catalog, "misleading", all="true")}
    without_direct, unasked = rows[*WITHOUT_DIRECT, 0], rows[*UNASKED, 0]
    assert (without_direct["direct_residual"], without_direct["denied_by_direct"]) == (None, None)
    assert without_direct["denied_by_mahalanobis"] is not None
    assert (unasked["ood_mahalanobis_auroc"], unasked["denied_by_mahalanobis"]) == (None, None)
    assert unasked["denied_by_direct"] is not None
    derived = rows[*WITHOUT_RELATIVE, 0]
    assert derived["relative_accuracy"] == pytest.approx(derived["accuracy"] / ACCURACY["net/0"])


def test_a_claim_that_nothing_could_deny_is_neither_misleading_nor_sound(tmp_path):
    store = make_paper_store(tmp_path, keep=lambda cell, metric: cell.matcher == "task_loss" and metric not in OOD)
    with Catalog(store) as catalog:
        rows = answer(catalog, "misleading", all="true")
        assert answer(catalog, "misleading") == []
    assert {row["misleading"] for row in rows if row["claims"]} == {None}
    assert {row["misleading"] for row in rows if not row["claims"]} == {False}


def test_no_cell_of_another_kind_is_called_misleading(catalog):
    assert {row["matcher"] for row in answer(catalog, "misleading", all="true")} == {"task_loss"}
    assert sum(cell.matcher == "task_loss" for cell in paper_cells()) == len(answer(catalog, "misleading", all="true"))
