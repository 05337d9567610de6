"""How good networks are by themselves: against chance, in another order of classes, and what is said of them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from stitchgrid.driver.network_remarks import network_remarks as remarks_in
from stitchgrid.driver.network_remarks import problem_of, versions_changed
from stitchgrid.engine.plain_networks import MIN_GAIN, SIGNIFICANCE, against_chance, better_order
from stitchgrid.records import Head, Network, NetworkSpec, Preprocess

NAMES = tuple(sorted(str(k) for k in range(1, 13)))  # 1, 10, 11, 12, 2, ...


def drawn(num: int, num_classes: int, *, right: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return answers that are right in a share of the cases, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=num)
    other = generator.integers(num_classes, size=num)
    return np.where(generator.random(num) < right, labels, other), labels


@given(seed=st.integers(0, 1000), num=st.integers(5, 300), right=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_chance_is_judged_by_a_binomial_test(seed, num, right):
    told, labels = drawn(num, 4, right=right, seed=seed)
    chance, is_at_chance = against_chance(told, labels, num_classes=4)
    by_hand = sum(np.mean(told == k) * np.mean(labels == k) for k in range(4))
    assert chance == pytest.approx(max(by_hand, 0.25))
    wanted = binomtest(int((told == labels).sum()), num, min(chance, 1.0), alternative="greater").pvalue
    assert is_at_chance == (wanted >= SIGNIFICANCE)


def test_an_answer_that_is_always_the_same_is_chance_however_frequent_its_class():
    labels = np.array([0] * 90 + [1] * 10)
    chance, is_at_chance = against_chance(np.zeros(100, int), labels, num_classes=2)
    assert (chance, is_at_chance) == (pytest.approx(0.9), True)


@pytest.mark.parametrize("right", [1.0, 0.6])
def test_another_order_of_classes_is_found(right):
    told, labels = drawn(400, 12, right=right)
    order = np.random.default_rng(1).permutation(12)
    found = better_order(order[told], labels, num_classes=12)
    assert found is not None
    assert found["classes"] == np.argsort(order).tolist()
    assert found["accuracy"] == pytest.approx(np.mean(told == labels))


def test_the_right_order_and_answers_by_chance_have_no_better_one():
    for right in (1.0, 0.5, 0.0):
        for seed in range(20):
            assert better_order(*drawn(120, 12, right=right, seed=seed), num_classes=12) is None


def test_a_gain_of_little_is_none():
    told, labels = drawn(5000, 10, right=0.4)
    swapped = np.where(told == 0, 1, np.where(told == 1, 0, told))
    found = better_order(swapped, labels, num_classes=10)
    assert np.mean(told == labels) - np.mean(swapped == labels) < MIN_GAIN
    assert found is None


@pytest.mark.parametrize(("right", "is_named"), [(0.35, False), (0.7, True)])
def test_an_order_under_which_most_answers_are_still_wrong_is_not_named(right, is_named):
    told, labels = drawn(400, 5, right=right)
    order = np.array([1, 2, 3, 4, 0])
    wrong = order[told]
    assert np.mean(told == labels) - np.mean(wrong == labels) > MIN_GAIN
    assert (better_order(wrong, labels, num_classes=5) is not None) == is_named


def network(*, weights: str = "a.pt", head: Head | None = None, way: str = "graph") -> Network:
    return Network(
        spec=NetworkSpec(name="net", entry="net", architecture="stitchgrid:tiny10", weights=weights),
        network_id="id",
        weights_digest="w",
        preprocess=Preprocess(),
        layers=(),
        num_cuts=1,
        num_classes=12,
        num_parameters=1,
        input_shape=(3, 8, 8),
        flops=1.0,
        num_kept_bytes=1,
        way=way,
        head=head or Head(),
    )


def network_remarks(*arguments):
    return remarks_in(*arguments, precision="fp32")


MEASURED = {"accuracy": 1 / 12, "chance": 1 / 12, "is_at_chance": True, "order": None, "problems": [], "remarks": []}


def test_what_is_to_be_said_of_a_network():
    assert network_remarks(network(), None, NAMES) == []
    assert network_remarks(network(), {**MEASURED, "is_at_chance": False}, NAMES) == []
    assert network_remarks(network(weights="random"), None, NAMES)[0].startswith("untrained")
    assert "at chance: accuracy 0.083 on 12 classes" in network_remarks(network(), MEASURED, NAMES)[0]
    assert "no `preprocess` is given for it" in network_remarks(network(), MEASURED, NAMES)[0]
    prepared = replace(network(), preprocess=Preprocess(mean=(0.5,), std=(0.5,)))
    assert "preprocess" not in network_remarks(prepared, MEASURED, NAMES)[0]
    assert "cannot be traced" in network_remarks(network(way="hooks"), None, NAMES)[0]
    assert (
        "probabilities" in network_remarks(network(head=Head(kind="probabilities", is_probability=True)), None, ())[0]
    )
    refused = {**MEASURED, "problems": ["it fails"], "remarks": ["rounding"]}
    assert network_remarks(network(), refused, NAMES)[0] == "cannot be measured: it fails"
    assert network_remarks(network(), refused, NAMES)[-1] == "rounding"
    assert problem_of(refused) == "it fails"
    assert problem_of(None) is None
    assert problem_of({}) is None


def test_natural_order_is_told_with_the_key_to_write():
    natural = sorted(NAMES, key=int)
    order = {"classes": [NAMES.index(name) for name in natural], "is_seen": [True] * 12, "accuracy": 1.0}
    said = network_remarks(network(), {**MEASURED, "order": order}, NAMES)[-1]
    assert "accuracy 0.083 as labelled, 1.000 if its classes are in natural order (1, 2, 3, 4," in said
    assert 'set class_order = "natural" in [data]' in said
    order |= {"classes": order["classes"][::-1]}
    said = network_remarks(network(), {**MEASURED, "order": order}, NAMES)[-1]
    assert "in another order: set classes = ['12', '11', '10'," in said


def test_other_versions_of_libraries_are_said(monkeypatch):
    monkeypatch.setattr(
        "stitchgrid.driver.network_remarks.library_versions", lambda spec: {"torch": "2.15", "timm": "1.0"}
    )
    assert versions_changed(network(), None) is None
    assert versions_changed(network(), MEASURED) is None
    assert versions_changed(network(), {"libraries": {"torch": "2.15", "timm": "1.0"}}) is None
    said = versions_changed(network(), {"libraries": {"torch": "2.14", "timm": "1.0"}})
    assert "other versions of libraries (torch 2.14 then, 2.15 here)" in said
