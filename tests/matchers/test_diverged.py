"""A training that came to nothing is told by its loss at the end, and is no claim."""

from dataclasses import replace

import pytest
import torch
from helpers_engine import (
    IMAGES,
    by_cell,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401
    reference,
    run,
    trained_zoo,
    whole_shard,
)
from helpers_paper import SWEEP, VALUES, make_paper_store
from torch.nn import functional

from stitchgrid.catalog import Catalog, load_question
from stitchgrid.catalog.findings import findings
from stitchgrid.matchers.divergence import has_diverged
from stitchgrid.matchers.heads import entropy
from stitchgrid.records import NetworkSpec
from stitchgrid.report import render_report
from stitchgrid.rows import lost_rows

SOUND = matcher("task_loss", epochs=6, batch_size=16, lr=1e-2, samples=96)
ONE_STEP = matcher("task_loss", epochs=1, batch_size=256, lr=1e20, samples=96)  # its loss is seen by no step
MANY_STEPS = matcher("task_loss", epochs=2, batch_size=16, lr=1e15, samples=96)
AUGMENTED = matcher("task_loss", epochs=1, batch_size=64, lr=1e3, samples=96, augment="crop4_flip")


def layer_into_itself(spec):
    sweep = make_sweep(trained_zoo(), [("conv", "conv")], [spec])
    cell = sweep.cell(0, 1, 0, 1, 0)
    return sweep, cell


@pytest.mark.parametrize("spec", [SOUND, ONE_STEP, MANY_STEPS, AUGMENTED], ids=lambda spec: spec.params)
def test_engine_and_reference_agree_on_what_has_diverged(spec):
    sweep, cell = layer_into_itself(spec)
    textbook = reference(trained_zoo(), sweep)
    textbook.values([cell])
    loss, constant = textbook.end_losses[cell.cell_id]
    shares = torch.bincount(IMAGES.fit.labels[:96]).double() / 96
    assert constant == pytest.approx(float(torch.distributions.Categorical(probs=shares).entropy()))
    rows = run(trained_zoo(), sweep, wanted=[cell.cell_id])
    assert {row.error for row in rows} == {None}
    is_flagged = {"diverged" in row.flags for row in rows}
    assert is_flagged == {spec is not SOUND} == {has_diverged(loss, constant)}


def test_a_map_of_one_step_at_a_huge_rate_is_flagged_with_its_values():
    sweep, cell = layer_into_itself(ONE_STEP)
    metrics = by_cell(run(trained_zoo(), sweep, wanted=[cell.cell_id]))[cell.cell_id]
    assert metrics["residual"].value > 1e30
    assert all("diverged" in row.flags for row in metrics.values())


@pytest.mark.parametrize(
    ("loss", "diverged"),
    [
        (0.0, False),
        (1.3, False),
        (1.386, False),
        (1.3862943611, True),
        (5.0, True),
        (torch.inf, True),
        (torch.nan, True),
    ],
)
def test_no_better_than_a_constant_prediction_is_diverged(loss, diverged):
    assert has_diverged(loss, entropy(torch.full((4,), 0.25))) == diverged


def test_no_constant_prediction_has_a_lower_loss():
    labels_N = torch.randint(5, (60,), generator=torch.Generator().manual_seed(0))
    logits_K = torch.zeros(5, requires_grad=True)
    lbfgs = torch.optim.LBFGS([logits_K], max_iter=100)

    def closure():
        lbfgs.zero_grad()
        loss = functional.cross_entropy(logits_K.expand(60, 5), labels_N)
        loss.backward()
        return loss

    lbfgs.step(closure)
    assert closure().item() == pytest.approx(entropy(torch.bincount(labels_N) / 60), rel=1e-5)


def test_cells_of_untrained_networks_are_flagged_lost_ones_too():
    sweep = make_sweep(trained_zoo(), [("conv", "view")], [matcher("cka"), matcher("direct", metrics=["residual"])])
    weights = {"conv": "random", "view": "weights.pt"}
    networks = tuple(
        replace(n, spec=NetworkSpec(name=n.name, entry=n.name, architecture="tests:staged", weights=weights[n.name]))
        for n in sweep.networks
    )
    sweep = replace(sweep, networks=networks, pairs=((0, 0), (0, 1), (1, 0), (1, 1)))
    lost = lost_rows(sweep, whole_shard(sweep), status="failed", reason="gone")
    for row in [*run(trained_zoo(), sweep), *lost]:
        is_untrained = "id of conv" in (row.source_network, row.target_network)
        assert ("untrained" in row.flags) == is_untrained


# The cells of task_loss of whose training the sweep in the store says that it diverged.
DIVERGED = {cell for cell, _ in VALUES if cell.matcher == "task_loss" and cell.source_layer in ("c", "d")}
FEW = {cell for cell in DIVERGED if cell.seed == 1}  # of two seeds


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    store = make_paper_store(tmp_path_factory.mktemp("grid"), flags=lambda cell: ("diverged",) * (cell in DIVERGED))
    with Catalog(store) as catalog:
        yield catalog


@pytest.fixture(scope="module")
def without(tmp_path_factory):  # these cells
    store = make_paper_store(tmp_path_factory.mktemp("grid"), keep=lambda cell, _: cell not in DIVERGED)
    with Catalog(store) as catalog:
        yield catalog


@pytest.fixture(scope="module")
def unflagged(tmp_path_factory):
    with Catalog(make_paper_store(tmp_path_factory.mktemp("grid"))) as catalog:
        yield catalog


RANKING = [
    "best_source",
    "depth_correspondence",
    "diagonal_layers",
    "diagonal_violations",
    "disagreement",
    "matcher_agreement",
    "misleading",
    "model_pairs",
    "paper_monotonicity",
    "paper_ood",
    "paper_sanity_across",
    "paper_sanity_within",
    "paper_sensitivity",
    "paper_specificity",
    "seed_correspondence",
]


@pytest.mark.parametrize("name", RANKING)
def test_what_ranks_or_claims_leaves_out_diverged_cells_unless_asked_for(catalog, without, unflagged, name):
    def told(of, **given):
        rows = of.ask(load_question(name), given).to_pylist()  # means are summed in any order
        return [[round(value, 9) if isinstance(value, float) else value for value in row.values()] for row in rows]

    assert told(catalog) == told(without)
    assert told(catalog, diverged="true") == told(unflagged)
    if name != "paper_sensitivity":  # which is of CKA alone here
        assert told(catalog) != told(unflagged)


def test_no_shipped_query_of_scores_is_without_the_parameter():
    from stitchgrid.catalog import list_questions

    of_scores = {question.name for question in list_questions() if "scores" in question.sql}
    assert of_scores | {"misleading", "paper_ood"} == {*RANKING, "settling"}  # of steps, which stand in test_steps


def test_scores_are_means_over_the_seeds_whose_training_did_not_diverge(tmp_path):
    store = make_paper_store(tmp_path, flags=lambda cell: ("diverged",) * (cell in FEW))
    with Catalog(store) as catalog:
        sql = "select * from {} where matcher = 'task_loss' and source_layer = 'd' and num_cells = {}"
        assert catalog.query(sql.format("scores", 1)).num_rows
        assert not catalog.query(sql.format("scores", 2)).num_rows
        assert catalog.query(sql.format("all_scores", 2)).num_rows


def test_report_and_summary_say_how_many_diverged(catalog, unflagged):
    text = render_report(catalog, [SWEEP], "markdown")
    assert f"{len(DIVERGED)} cells whose training diverged, left out" in text
    assert findings(catalog, SWEEP)[0].startswith(f"{len(DIVERGED)} cells of task_loss diverged")
    assert not any("diverged" in line for line in findings(unflagged, SWEEP))


def test_the_atlas_marks_no_diverged_square_as_a_best_source(catalog, unflagged):
    from stitchgrid.atlas.reading import read_sweep

    def best(of):
        choice = next(c for c in read_sweep(of, SWEEP).choices if c.matcher == "task_loss" and c.metric == "accuracy")
        return [panel.best(choice.higher_is_similar) for panel in choice.panels]

    assert any(squares[2:].any() for squares in best(unflagged))
    assert not any(squares[2:].any() for squares in best(catalog))
    assert all(squares[:2].any(axis=0).all() for squares in best(catalog))
