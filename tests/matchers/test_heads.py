"""What the end of a network says: heads are told or asked for, and each is measured by what fits it."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from helpers_engine import (
    IMAGES,
    ConvStage,
    FakeImages,
    FakeSplit,
    MeanStage,
    Staged,
    Zoo,
    by_cell,
    make_sweep,
    matcher,
    network_record,
    one_thread,  # noqa: F401  # a fixture
    reference,
    run,
    unlike_reference,
)
from sklearn.metrics import log_loss
from torch import nn

from stitchgrid.errors import InputError
from stitchgrid.matchers.heads import answers, detect_head, losses, num_classes_of, right_answers, share_alike
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.records import Head, Sweep

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0], [-1.0, -2.0, 4.0], [0.0, 1.0, 1.5]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1, 2])
SOFTMAX = Head(kind="probabilities", is_probability=True)


# What a head is -------------------------------------------------------------------------------------------------------


def test_rows_that_sum_to_one_are_probabilities_and_others_are_logits():
    assert detect_head(LOGITS.softmax(1), ends_in=None, named=None) == SOFTMAX
    assert detect_head(LOGITS, ends_in=None, named=None) == Head()
    assert detect_head(LOGITS.log_softmax(1), ends_in=None, named=None) == Head()
    assert detect_head(LOGITS.sigmoid(), ends_in="sigmoid", named=None) == Head()
    shifted = LOGITS - LOGITS.mean(1, keepdim=True) + 1 / 3  # rows sum to 1, with negative numbers among them
    assert detect_head(shifted, ends_in=None, named=None) == Head()


def test_one_score_without_a_word_is_refused_with_the_words_there_are():
    with pytest.raises(InputError, match=r'returns one score an image.*head = "binary".*"regression" or "embedding"'):
        detect_head(LOGITS[:, :1], ends_in=None, named=None)
    with pytest.raises(InputError, match="returns one score an image"):
        detect_head(torch.ones(4, 1), ends_in="softmax", named=None)  # a softmax over one score sums to 1, too


@pytest.mark.parametrize(
    ("scores", "named", "message"),
    [
        (LOGITS, "probabilities", r"rows of two or more numbers in \[0, 1\] that sum to 1.*lie in \[-3, 4\]"),
        (LOGITS, "binary", 'head = "binary" means one score an image, but it returns 3'),
        (LOGITS[:, :1], "logits", 'head = "logits" means one score a class, but it returns one an image'),
        (torch.ones(4, 1), "probabilities", "rows of two or more numbers"),
    ],
)
def test_a_word_that_the_scores_belie_is_refused(scores, named, message):
    with pytest.raises(InputError, match=message):
        detect_head(scores, ends_in=None, named=named)


def test_a_sigmoid_at_the_end_makes_scores_in_0_1_probabilities_and_nothing_else_does():
    scores = LOGITS.sigmoid()
    assert detect_head(scores, ends_in="sigmoid", named="multilabel") == Head(kind="multilabel", is_probability=True)
    assert detect_head(scores, ends_in=None, named="multilabel") == Head(kind="multilabel")
    assert detect_head(scores[:, :1], ends_in="sigmoid", named="binary") == Head(kind="binary", is_probability=True)
    assert detect_head(LOGITS[:, :1], ends_in="sigmoid", named="binary") == Head(kind="binary")


def test_heads_know_how_many_classes_their_scores_tell_apart():
    assert [num_classes_of(Head(kind=kind), 3) for kind in ("logits", "multilabel", "embedding", "regression")] == [
        *(3, 3, 0, 0)
    ]
    assert num_classes_of(Head(kind="binary"), 1) == 2


# What scores say ------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_scikit_learn():
    wanted = [log_loss([label], [row], labels=[0, 1, 2]) for label, row in zip(LABELS, LOGITS.softmax(1), strict=True)]
    assert losses(LOGITS, LABELS, Head()).tolist() == pytest.approx(wanted)
    assert losses(LOGITS.softmax(1), LABELS, SOFTMAX).tolist() == pytest.approx(wanted)
    yes = LABELS.clamp(max=1)
    odds = LOGITS[:, :1]
    wanted = [log_loss([y], [p], labels=[0, 1]) for y, p in zip(yes, odds[:, 0].sigmoid(), strict=True)]
    for scores, head in ((odds, Head(kind="binary")), (odds.sigmoid(), Head(kind="binary", is_probability=True))):
        assert losses(scores, yes, head).tolist() == pytest.approx(wanted)
    each = np.eye(3)[LABELS]
    wanted = [np.mean([log_loss([y], [p], labels=[0, 1]) for y, p in zip(*one, strict=True)])
              for one in zip(each, LOGITS.sigmoid(), strict=True)]  # fmt: skip
    for scores, head in ((LOGITS, "multilabel"), (LOGITS.sigmoid(), "multilabel")):
        is_probability = scores is not LOGITS
        assert losses(scores, LABELS, Head(kind=head, is_probability=is_probability)).tolist() == pytest.approx(wanted)


def test_losses_of_stacked_networks_are_those_of_each():
    stacked = torch.stack([LOGITS, LOGITS.flip(0)])
    for head in (Head(), Head(kind="multilabel")):
        each = torch.stack([losses(one, LABELS, head) for one in stacked])
        assert torch.allclose(losses(stacked, LABELS, head), each)


def test_a_probability_of_zero_has_a_large_loss_and_no_infinite_one():
    loss = losses(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), SOFTMAX)
    assert 80 < loss.item() < 100


def test_answers_of_a_binary_head_are_signs_and_of_sigmoids_halves():
    odds = LOGITS[:, :1]
    assert answers(odds, Head(kind="binary")).tolist() == [1, 1, 0, 0]
    assert answers(odds.sigmoid(), Head(kind="binary", is_probability=True)).tolist() == [1, 1, 0, 0]
    given = answers(LOGITS, Head(kind="multilabel"))
    right = right_answers(LABELS, Head(kind="multilabel"), 3)
    assert share_alike(given, right, Head(kind="multilabel")).tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 2 / 3])


# Engine and reference -------------------------------------------------------------------------------------------------


def two_classes(split: FakeSplit) -> FakeSplit:
    halved = object.__new__(FakeSplit)
    halved.num, halved.pixels, halved.labels = split.num, split.pixels, split.labels % 2
    return halved


HALVED = FakeImages(fit=two_classes(IMAGES.fit), eval=two_classes(IMAGES.eval))


@dataclass(frozen=True)
class Case:
    width: int
    end: nn.Module
    head: Head
    images: FakeImages = IMAGES


CASES = {
    "softmax": Case(4, nn.Softmax(1), SOFTMAX),
    "one score": Case(1, nn.Identity(), Head(kind="binary"), HALVED),
    "one probability": Case(1, nn.Sigmoid(), Head(kind="binary", is_probability=True), HALVED),
    "labels": Case(4, nn.Identity(), Head(kind="multilabel")),
    "probabilities of labels": Case(4, nn.Sigmoid(), Head(kind="multilabel", is_probability=True)),
    "embedding": Case(6, nn.Identity(), Head(kind="embedding")),
    "regression": Case(2, nn.Tanh(), Head(kind="regression")),
}


def into(case: Case, kinds: list) -> tuple[Zoo, Sweep]:
    torch.manual_seed(0)
    stages = [ConvStage(3, 6), ConvStage(6, 8, stride=2), MeanStage(), nn.Linear(8, case.width), case.end]
    zoo = Zoo.of(net=Staged(stages).eval())
    sweep = make_sweep(zoo, [("net", "net")], kinds, images=case.images)
    record = replace(
        network_record(zoo, "net", [0, 1, 2]),
        head=case.head,
        num_classes=num_classes_of(case.head, case.width),
        is_labelled=case.head.has_classes,
    )
    return zoo, replace(sweep, networks=(record,))


def kinds_for(case: Case) -> list:
    direct = matcher("direct")
    trained = matcher("task_loss", epochs=2, lr=0.05, batch_size=64)
    return [direct, trained] if case.head.has_classes else [direct]


@pytest.mark.parametrize("name", CASES)
def test_engine_and_reference_agree_on_every_head(name):
    case = CASES[name]
    zoo, sweep = into(case, kinds_for(case))
    rows = run(zoo, sweep, images=case.images)
    assert not [row.error for row in rows if row.error]
    told = reference(zoo, sweep, case.images)
    for kind, tolerance in (("direct", 1e-4), ("task_loss", 1e-2)):  # rounding grows while maps are trained
        some = [row for row in rows if row.matcher == kind]
        wider = dict.fromkeys(MATCHERS[kind].metric_names, tolerance)
        assert not unlike_reference(sweep, some, told, wider=wider)


@pytest.mark.parametrize("name", CASES)
def test_a_layer_into_itself_says_what_the_network_says(name):
    case = CASES[name]
    zoo, sweep = into(case, kinds_for(case)[:1])
    for found in by_cell(run(zoo, sweep, images=case.images)).values():
        row = next(iter(found.values()))
        if row.source_layer == row.target_layer:
            if case.head.has_classes:
                assert found["agreement"].value == 1.0
                assert found["relative_accuracy"].value == pytest.approx(1.0)
            else:
                assert found["output_cosine"].value == pytest.approx(1.0)
                assert found["output_r2"].value == pytest.approx(1.0)
                assert "accuracy" not in found


def test_softmax_at_the_end_changes_no_loss():
    zoo, sweep = into(CASES["softmax"], kinds_for(CASES["softmax"])[:1])
    plain = Case(4, nn.Identity(), Head())
    zoo_of_logits, of_logits = into(plain, kinds_for(plain)[:1])
    mine = [row.value for row in run(zoo, sweep) if row.metric == "loss"]
    theirs = [row.value for row in run(zoo_of_logits, of_logits) if row.metric == "loss"]
    assert mine == pytest.approx(theirs, rel=1e-4)


# Addresses ------------------------------------------------------------------------------------------------------------


def test_only_stitches_into_a_head_that_is_not_logits_have_an_address_of_their_own():
    kinds = [matcher("direct"), matcher("cka")]
    _, sweep = into(Case(4, nn.Identity(), Head()), kinds)
    other = replace(sweep, networks=(replace(sweep.networks[0], head=SOFTMAX),))
    for position, differs in ((0, True), (1, False)):
        mine, theirs = (one.cell(0, 0, 0, 1, position).cell_id for one in (sweep, other))
        assert (mine != theirs) == differs
