"""The contract of every kind, written from what it says of itself: its oracle, bounds, direction and invariances.

A kind that is added to the registry is tested here without another line; what it claims must hold, and what it does not
claim must be seen to fail. Beside its file and its line in the registry it needs an oracle in `reference/`, and what
`python -m stitchgrid.manual` writes of it (its card, the type of its measure; `test_docs.py` holds both).
"""

import inspect
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from math import inf, isnan
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stitchgrid.matchers.measures import fit_rows, index_of_rows
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.protocol import About, ClosedForm, MomentIndex
from stitchgrid.matchers.registry import KINDS, MATCHERS, kind_of
from stitchgrid.matchers.stitchers.affine import residual
from stitchgrid.moments import pair_moments
from stitchgrid.records import Layer
from stitchgrid.reference.run import reads

INDICES = [name for name, about in MATCHERS.items() if about.family == "index"]
CLOSED_FORMS = [kind.about.kind for kind in KINDS if issubclass(kind, ClosedForm)]
OF_MOMENTS = [kind.about.kind for kind in KINDS if issubclass(kind, MomentIndex | ClosedForm)]
every_kind = pytest.mark.parametrize("kind", MATCHERS)
every_index = pytest.mark.parametrize("kind", INDICES)
every_closed_form = pytest.mark.parametrize("kind", CLOSED_FORMS)
of_values = pytest.mark.parametrize("kind", [*INDICES, *CLOSED_FORMS])

#: Parameters by which a kind is tried, where its defaults would tell little of layers as narrow as these.
PARAMS: dict[str, dict[str, object]] = {"reduced_rank": {"map_rank": 2}}

#: Relative difference from the oracle that is allowed; ranks of neighbours and of distances move by rounding.
CLOSE = {"mutual_knn": 1e-3, "jaccard_knn": 1e-3}


def layer(rows: int, width: int, *, seed: int, rank: int | None = None) -> Tensor:
    """Return features of unequal scale with a rank and a mean of their own, float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    inner = width if rank is None else rank
    return draw(rows, inner) @ draw(inner, width) + 3 * draw(width)


def related(rows: int, width_x: int, width_y: int, *, share: float = 0.25) -> tuple[Tensor, Tensor]:
    """Return two layers that share some of what they see."""
    x, y = layer(rows, width_x, seed=1), layer(rows, width_y, seed=2)
    return x, y + share * x @ layer(width_x, width_y, seed=3)


def with_dead_and_doubled(rows: int) -> tuple[Tensor, Tensor]:
    """Return two layers with a unit that never changes, and one that is there twice."""
    x, y = related(rows, 6, 6)
    x[:, 1], y[:, 2], x[:, 4], y[:, 5] = 0.5, 0.0, x[:, 0], y[:, 3]
    return x, y


SHAPES: dict[str, tuple[Tensor, Tensor]] = {
    "equal widths": related(80, 6, 6),
    "source wider": related(80, 9, 4),
    "target wider": related(80, 4, 9),
    "rank-deficient source": (layer(80, 6, seed=1, rank=3), layer(80, 6, seed=2)),
    "rank-deficient target": (layer(80, 5, seed=1), layer(80, 8, seed=2, rank=3)),
    "more features than rows": related(14, 30, 32),
    "one feature each": related(40, 1, 1),
    "dead and doubled units": with_dead_and_doubled(60),
}
SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda x: x.float(),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "offset 1e4": lambda x: (x + 1e4).float(),
    "scaled 1e-30": lambda x: (1e-30 * x).float(),
    "scaled 1e30": lambda x: (1e30 * x).float(),
}


def applies(about: About, x: Tensor, y: Tensor) -> bool:
    vectors = [
        Layer(name="v", node="v", depth=0, kind="vector", axes="ND", shape=(a.shape[1],), flops=0) for a in (x, y)
    ]
    return about.why_not(*vectors) is None and len(x) >= about.fewest_images


def values(kind: str, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return an index's metrics, or the residual of a closed-form stitcher on the rows that it was fitted on."""
    params = PARAMS.get(kind, {})
    if MATCHERS[kind].family == "index":
        return index_of_rows(kind, x, y, **params)
    return {"residual": float(residual(fit_rows(kind, x, y, **params).map, pair_moments(x, y)))}


def score(kind: str, x: Tensor, y: Tensor) -> float:
    return values(kind, x, y)[MATCHERS[kind].score]


def oracle_module(kind: str) -> ModuleType:
    name = f"stitchgrid.reference.{'indices' if MATCHERS[kind].family == 'index' else 'stitchers'}.{kind}"
    told = f"{kind} has no oracle; write {name.replace('.', '/')}.py with a function {kind}"
    if name not in sys.modules and find_spec(name) is None:
        pytest.fail(told)
    module = import_module(name)
    assert hasattr(module, kind), told
    return module


def oracle(kind: str, x: Tensor, y: Tensor) -> object:
    """Return what the reference says of two layers: metrics of an index, weight and bias of a stitcher."""
    params = {
        name: value
        for name, value in MATCHERS[kind].params(**PARAMS.get(kind, {}))
        if name not in ("resize", "cls", "pool")
    }
    return getattr(oracle_module(kind), kind)(x.double(), y.double(), **params)


def of_oracle(kind: str, x: Tensor, y: Tensor) -> dict[str, float]:
    if MATCHERS[kind].family == "index":
        return oracle(kind, x, y)
    weight, bias = oracle(kind, x, y)
    mapped = x.double() @ weight + bias
    return {"residual": float((mapped - y.double()).square().sum() / y.double().square().sum())}


def tolerance(kind: str) -> float:
    return CLOSE.get(kind, 1e-5)


@pytest.mark.parametrize("kind", MATCHERS)
def test_a_kind_has_an_oracle_of_its_name(kind):
    assert callable(getattr(oracle_module(kind), kind))


@of_values
@pytest.mark.parametrize("shape", SHAPES)
def test_a_kind_is_its_oracle_on_explicit_matrices(kind, shape):
    for x, y in (SHAPES[shape], SHAPES[shape][::-1]):
        if applies(MATCHERS[kind], x, y):
            wanted = of_oracle(kind, x, y)
            assert values(kind, x, y) == pytest.approx(wanted, rel=tolerance(kind), abs=1e-8, nan_ok=True)


@of_values
@pytest.mark.parametrize("scale", SCALES)
def test_a_kind_is_its_oracle_whatever_the_type_and_scale_of_its_numbers(kind, scale):
    x, y = (SCALES[scale](a) for a in related(80, 6, 6))
    wanted = of_oracle(kind, x.double() - (1e4 if "offset" in scale and kind in CLOSED_FORMS else 0), y)
    assert values(kind, x, y) == pytest.approx(wanted, rel=max(tolerance(kind), 2e-5), abs=1e-8)


@every_index
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(30, 50), width_x=st.integers(1, 12), width_y=st.integers(1, 12), seed=st.integers(0, 99))
def test_an_index_is_its_oracle_for_any_shape(kind, rows, width_x, width_y, seed):
    x, y = layer(rows, width_x, seed=seed), layer(rows, width_y, seed=seed + 1)
    if applies(MATCHERS[kind], x, y):
        assert values(kind, x, y) == pytest.approx(of_oracle(kind, x, y), rel=tolerance(kind), abs=1e-7, nan_ok=True)


@every_index
@pytest.mark.parametrize("shape", SHAPES)
def test_values_lie_within_their_bounds(kind, shape):
    x, y = SHAPES[shape]
    if applies(MATCHERS[kind], x, y):
        for name, value in values(kind, x, y).items():
            low, high = MATCHERS[kind].metric(name).bounds
            assert isnan(value) or (-inf if low is None else low) <= value <= (inf if high is None else high)


@every_index
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_more_like_a_layer_than_itself(kind, dtype):
    x, y = (a.to(dtype) for a in related(80, 6, 6))
    low, high = MATCHERS[kind].metric(MATCHERS[kind].score).bounds
    higher = MATCHERS[kind].metric(MATCHERS[kind].score).higher_is_similar
    best = high if higher else low
    assert best is not None
    assert score(kind, x, x) == pytest.approx(best, abs=2e-6)
    assert abs(score(kind, x, y) - best) > 1e-2


@every_index
@pytest.mark.parametrize("side", ["source", "target", "both"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 / 3])
def test_a_layer_that_does_not_vary_has_no_value(kind, side, value):
    alive, still = layer(30, 3, seed=5).float(), torch.full((30, 3), value)
    x, y = {"source": (still, alive), "target": (alive, still), "both": (still, still)}[side]
    found = values(kind, x, y)
    wanted = of_oracle(kind, x, y)
    assert found == pytest.approx(wanted, nan_ok=True, abs=1e-9)


@cache
def transforms(width: int) -> dict[str, Callable[[Tensor], Tensor]]:
    rotation = torch.linalg.qr(layer(width, width, seed=6)).Q
    mixing = torch.eye(width).double() + layer(width, width, seed=7) / 3
    return {
        "shift": lambda x: x + 3 * torch.arange(x.shape[1]),
        "scaling": lambda x: 0.3 * x,
        "permutation": lambda x: x.roll(1, 1),
        "rotation": lambda x: x @ rotation,
        "linear": lambda x: x @ mixing,
    }


@of_values
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("name", transforms(1))
def test_a_kind_is_invariant_to_what_it_claims_and_to_nothing_else(kind, side, name):
    x, y = related(90, 6, 6)
    change = transforms(6)[name]
    before = score(kind, x, y)
    after = score(kind, change(x), y) if side == "source" else score(kind, x, change(y))
    if name in MATCHERS[kind].invariances[side == "target"]:
        told = f"{kind} changes with the {side}'s {name}: write its `invariances` without"
        assert after == pytest.approx(before, rel=1e-7), told
    else:
        told = f"{kind} does not change with the {side}'s {name}: write it into its `invariances`"
        assert abs(after - before) > 1e-5, told


@every_index
def test_an_index_is_symmetric_if_it_says_so_and_else_is_not(kind):
    x, y = related(90, 6, 5)
    forth, back = score(kind, x, y), score(kind, y, x)
    is_symmetric = forth == pytest.approx(back, rel=1e-12)
    assert is_symmetric == MATCHERS[kind].symmetric, f"write symmetric={is_symmetric} in `about` of {kind}"


@every_index
def test_many_pairs_together_give_what_each_gives_alone(kind):
    from stitchgrid.matchers.measures import gram_of_rows
    from stitchgrid.matchers.protocol import GramIndex
    from stitchgrid.matchers.registry import kind_of

    index = kind_of(kind)(MATCHERS[kind].params())
    sides = [layer(40, 5, seed=1), layer(40, 5, seed=2, rank=2), layer(40, 7, seed=3), layer(40, 5, seed=4)]
    pairs = [(x, y) for x in sides for y in sides if applies(MATCHERS[kind], x, y)]
    if isinstance(index, GramIndex):
        prepared = {id(x): index.prepare(gram_of_rows(x)) for x in sides}
        together = index.compare([(prepared[id(x)], prepared[id(y)]) for x, y in pairs])
    else:
        together = index.compare([pair_moments(x, y) for x, y in pairs])
    for position, (x, y) in enumerate(pairs):
        alone = values(kind, x, y)
        assert {name: value[position].item() for name, value in together.items()} == pytest.approx(alone, rel=1e-10)


#: Shapes for which a kind's map is one of many, without a flag.
ARBITRARY = {("permutation", "dead and doubled units")}


@every_closed_form
@pytest.mark.parametrize("shape", SHAPES)
def test_the_map_of_a_stitcher_is_its_oracles_on_rows_that_it_was_not_fitted_on(kind, shape):
    for x, y in (SHAPES[shape], SHAPES[shape][::-1]):
        if not applies(MATCHERS[kind], x, y) or (kind, shape) in ARBITRARY:
            continue
        fit, (weight, bias) = fit_rows(kind, x, y, **PARAMS.get(kind, {})), oracle(kind, x, y)
        if not any(map(bool, fit.doubts.values())):
            rows = layer(20, x.shape[1], seed=77)
            torch.testing.assert_close(fit.map(rows), rows @ weight + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", OF_MOMENTS)
def test_a_kind_reads_the_principal_axes_that_it_declares_and_no_others(kind):
    """Their decomposition is part of what `plan` adds up, and what is held in memory."""
    given = {"strength": 1.0} if kind == "ridge" else PARAMS.get(kind, {})
    made = kind_of(kind)(MATCHERS[kind].params(**given))
    moments = pair_moments(*related(80, 6, 6))
    if isinstance(made, MomentIndex):
        made.compare([moments])
    else:
        made.fit(moments)
    read = {name for name, side in (("source", moments.x), ("target", moments.y)) if "axes" in vars(side)}
    assert read == made.axes_of, f"write axes_of = frozenset({read}) in the class of {kind}"


@every_kind
def test_a_stitcher_takes_the_rules_of_alignment_and_an_index_does_not(kind):
    wanted = MATCHERS[kind].family == "stitcher"
    told = "write params = Rules, or a class made from it" if wanted else "write params without the rules of alignment"
    assert issubclass(MATCHERS[kind].params, Rules) == wanted, told


@every_kind
def test_a_kind_says_what_people_ask(kind):
    about = MATCHERS[kind]
    words = {name: getattr(about, name) for name in ("summary", "source", "use", "bias", "not_when")}
    assert all(words.values()), f"write in `about` of {kind}: {[name for name, text in words.items() if not text]}"
    assert about.summary[0].islower() or about.summary[:3].isupper(), "write `summary` without a capital: it follows a:"
    assert about.use.endswith((".", "?")), f"write `use` of {kind} in sentences"
    for name in ("bias", "not_when"):
        assert not words[name].endswith("."), f"write `{name}` of {kind} as the end of a sentence, without its dot"
    assert inspect.getdoc(kind_of(kind)), f"write the formula of {kind} as the docstring of its class"
    assert about.metric(about.score).higher_is_similar is not None, "write another `score`: nothing can be ranked by it"
    assert len(set(about.metric_names)) == len(about.metrics)
    assert about.family == "stitcher" or kind in about.metric_names, f"write a metric of the index's own name, {kind}"


@every_index
def test_the_oracle_of_an_index_says_which_rows_it_is_given(kind):
    """Of a `GramIndex` a row is an image, of a `MomentIndex` what is compared."""
    wanted = "compared" if kind in OF_MOMENTS else "flattened"
    assert reads(oracle_module(kind)) == wanted, f'write READS = "{wanted}" in the oracle of {kind}'


def test_an_oracle_that_does_not_say_which_rows_it_is_given_is_told_what_to_write():
    with pytest.raises(AttributeError, match=r'x does not say in which rows.*write READS = "flattened"'):
        reads(ModuleType("x"))


def test_indices_refuse_what_has_no_common_rows():
    with pytest.raises(
        ValueError, match=r"cka compares two matrices with one row per image.*got \(4, 2\) and \(5, 2\)"
    ):
        index_of_rows("cka", torch.zeros(4, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="direct is no index"):
        index_of_rows("direct", torch.rand(4, 2), torch.rand(4, 2))
    with pytest.raises(ValueError, match="cka is no stitcher in closed form"):
        fit_rows("cka", torch.rand(4, 2), torch.rand(4, 2))
