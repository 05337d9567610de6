"""The kinds that the manual shows how to add, added as they stand there, held to the contract, run by the engine."""

import re
import sys
from types import ModuleType

import pytest
import test_kinds as contract
from helpers_engine import (
    FEW,
    make_sweep,
    matcher,
    one_thread,  # noqa: F401  # a fixture
    reference,
    run,
    trained_zoo,
    unlike_reference,
)

from stitchgrid.manual import page
from stitchgrid.matchers import registry
from stitchgrid.matchers.protocol import Kind

EXAMPLES = dict(re.findall(r"```python\n# (stitchgrid/\S+)\n(.*?)```", page("contributing"), flags=re.S))


@pytest.fixture(params=["indices/rv", "stitchers/shift"])
def added(request, monkeypatch) -> str:
    """Return the name of a kind after its two files and its line are there."""
    for folder in ("matchers", "reference"):
        path = f"stitchgrid/{folder}/{request.param}.py"
        name = path.removesuffix(".py").replace("/", ".")
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(EXAMPLES[path], path, "exec"), vars(module))
    written = vars(sys.modules[f"stitchgrid.matchers.{request.param.replace('/', '.')}"]).values()
    [kind] = [one for one in written if isinstance(one, type) and issubclass(one, Kind) and "about" in vars(one)]
    about = kind.about
    monkeypatch.setitem(registry._BY_NAME, about.kind, kind)
    monkeypatch.setitem(registry.MATCHERS, about.kind, about)
    return about.kind


def test_the_example_is_its_oracle(added):
    for shape in contract.SHAPES:
        contract.test_a_kind_is_its_oracle_on_explicit_matrices(added, shape)
    for scale in contract.SCALES:
        contract.test_a_kind_is_its_oracle_whatever_the_type_and_scale_of_its_numbers(added, scale)


def test_the_example_keeps_its_claims(added):
    for side in ("source", "target"):
        for name in contract.transforms(1):
            contract.test_a_kind_is_invariant_to_what_it_claims_and_to_nothing_else(added, side, name)
    contract.test_a_kind_says_what_people_ask(added)
    if registry.MATCHERS[added].family == "index":
        contract.test_an_index_is_symmetric_if_it_says_so_and_else_is_not(added)


def test_the_engine_runs_the_example_as_the_reference_does(added):
    zoo = trained_zoo()
    sweep = make_sweep(
        zoo, [("conv", "conv_again"), ("conv", "token")], [matcher(added), matcher("direct")], layers=FEW
    )
    rows, found = run(zoo, sweep), reference(zoo, sweep)
    assert added in {row.matcher for row in rows if row.value is not None}
    assert not unlike_reference(sweep, rows, found)
