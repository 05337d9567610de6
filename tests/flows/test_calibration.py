# ruff: noqa: T201  # what comes out is printed, for the README
"""Whether what is said of a match holds: where nothing corresponds, where something does, and of intervals.

Everything is drawn from the seeds named here, so the numbers of the README come out again: `pytest -m slow -n 0 -s
tests/flows/test_calibration.py` prints them.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import calibration_networks
import helpers_answers
import helpers_calibration as calibration
import pytest
import torch
from calibration_networks import Small, Unrelated, turn
from helpers_answers import PlannedCell, Planted
from helpers_engine import one_thread  # noqa: F401  # a fixture
from helpers_flow import run
from scipy.stats import binom, binomtest, chisquare
from torch import nn
from torch.nn import functional

from stitchgrid.catalog import Catalog
from stitchgrid.catalog.verdict_rules import CHECKS
from stitchgrid.datasets.images import Images
from stitchgrid.datasets.opening import open_images
from stitchgrid.engine.shuffles import shuffled_orders
from stitchgrid.matchers.evidence import wilson_interval
from stitchgrid.matchers.gram import Gram, centred_gram
from stitchgrid.matchers.indices.cka_unbiased import CKAUnbiased
from stitchgrid.matchers.indices.pwcca import PWCCA
from stitchgrid.matchers.stitchers.affine import residual
from stitchgrid.matchers.stitchers.direct import fit_direct
from stitchgrid.moments import pair_moments
from stitchgrid.records import DataSpec
from stitchgrid.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

CODE = calibration_networks.__file__
MATCHERS = ("direct", "cka_unbiased", "pwcca", "procrustes")
GROUPS, DRAWS = 20, 40
LAYERS = [f"blocks.{number}" for number in range(len(calibration_networks.WIDTHS))]

Answer = Mapping[str, object]


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    """Keep launches to one thread: they take as many as there are cores, and on small matrices these wait."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield
    os.sched_setaffinity(0, before)


# Networks and jobs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> Images:
    return open_images(DataSpec(dataset="digits", fit_split="train", eval_split="test"))


def pixels(split) -> torch.Tensor:  # type: ignore[no-untyped-def]
    return split.batch(torch.arange(split.num)).float() / 255


def trained(net: nn.Module, images: Images, *, epochs: int, seed: int, lr: float = 5e-3) -> nn.Module:
    """Return a network trained on the fit images."""
    x, labels = pixels(images.fit), torch.as_tensor(images.fit.labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adam = torch.optim.Adam(net.train().parameters(), lr=lr)
        for _ in range(epochs):
            for chosen in torch.randperm(len(x)).split(64):
                adam.zero_grad()
                functional.cross_entropy(net(x[chosen]), labels[chosen]).backward()
                adam.step()
    return net.eval()


def drawn(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def in_files(folder: Path, nets: Mapping[str, tuple[str, nn.Module]], **more: object) -> list[str]:
    """Keep networks as checkpoints and return their tables in a job file; each is given with its function's name."""
    tables = []
    for seed, (name, (function, net)) in enumerate(nets.items()):
        torch.save(net.state_dict(), folder / f"{name}.pt")
        tables.append(model(name, function, f"{name}.pt", seed=seed, **more))  # of its twin
    return tables


def model(name: str, function: str, weights: str, **more: object) -> str:
    keys = {"name": name, "architecture": f"{CODE}:{function}", "weights": weights, "layers": LAYERS, **more}
    return "\n".join(["[[models]]", *(f"{key} = {value!r}" for key, value in keys.items())])


def answers(
    folder: Path, models: Iterable[str], pairs: Sequence[tuple[str, str]], *, fit: int = 600, evaluated: int = 250
) -> list[Answer]:
    """Run a job on so many images and return its answers, each with its checks by name."""
    split = lambda name, num: f'{{ split = "{name}", samples = {num} }}'  # noqa: E731
    folder.joinpath("job.toml").write_text(
        "\n".join(
            [
                *('name = "calibration"', "[data]", 'dataset = "digits"'),
                *(f"fit = {split('train', fit)}", f"eval = {split('test', evaluated)}", *models),
                *(f'[[matchers]]\nkind = "{kind}"' for kind in MATCHERS),
                f"[controls]\nuntrained = true\nshuffled = {DRAWS}\n[intervals]\ngroups = {GROUPS}",
                f"[grid]\npairs = {[list(pair) for pair in pairs]}",
            ]
        )
    )
    run("launch", folder / "job.toml", "--store", folder / "grid", "--address", "none")
    with Catalog(Store.open(folder / "grid")) as catalog:
        rows = catalog.query("from answers").to_pylist()
    for row in rows:
        row["checks"] = {check["name"]: check["passed"] for check in row["checks"]}
    assert len(rows) == len(pairs) * len(LAYERS) * len(MATCHERS)
    return rows


def counted(found: Iterable[Answer], holds: Callable[[Answer], bool]) -> dict[str, tuple[int, int]]:
    """Return of how many answers, of all, something holds, by matcher."""
    found = list(found)
    return {
        kind: (sum(map(holds, some)), len(some))
        for kind in MATCHERS
        if (some := [one for one in found if one["matcher"] == kind])
    }


def is_supported(one: Answer) -> bool:
    return one["verdict"] == "supported"


def passes(name: str) -> Callable[[Answer], bool]:
    return lambda one: bool(one["checks"][name])  # type: ignore[index]


def tell(what: str, found: Iterable[Answer], *names: str) -> None:
    """Print of how many answers some checks hold, and how many are supported."""
    told = {name: counted(found, passes(name)) for name in names} | {"supported": counted(found, is_supported)}
    print("", *(f"{what}: {name} {counts}" for name, counts in told.items()), sep="\n")


# Where nothing corresponds --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zoo(images: Images) -> dict[str, nn.Module]:
    """Return trained networks, which have nothing in common but the images."""
    return {f"net{seed}": trained(drawn(Small, seed), images, epochs=8, seed=seed) for seed in range(4)}


def test_layers_of_noise_are_hardly_ever_supported(zoo, images: Images, tmp_path: Path) -> None:
    """At most 5 % of target layers, by every matcher: these sources are right about every image, and are noise."""
    targets = list(zoo)[:3]
    nets = {name: ("small", zoo[name]) for name in targets}
    for seed in range(5):
        net = drawn(Unrelated, 100 + seed)
        for split in (images.fit, images.eval):
            net.learn(pixels(split), torch.as_tensor(split.labels))
        nets[f"noise{seed}"] = "unrelated", net
    pairs = [(name, target) for name in nets for target in targets if name not in zoo]
    found = answers(tmp_path, in_files(tmp_path, nets), pairs)
    assert all(map(passes("above_chance"), found))
    tell("noise", found, "above_shuffled", "above_untrained", "localised", "others_agree")
    for num, of in counted(found, passes("above_shuffled")).values():
        assert num <= binom.ppf(0.999, of, 2 / (1 + DRAWS))
    for num, of in counted(found, is_supported).values():
        assert num <= 0.05 * of


def test_random_networks_are_never_supported(tmp_path: Path) -> None:
    """Whatever their activations have in common by the images and the architecture."""
    names = [f"random{seed}" for seed in range(4)]
    models = [model(name, "small", "random", seed=seed) for seed, name in enumerate(names)]
    found = answers(tmp_path, models, list(permutations(names, 2)))
    tell("random", found)
    assert not any(map(is_supported, found))


def test_random_networks_in_checkpoints_are_told_by_their_accuracy_alone(tmp_path: Path) -> None:
    """Nobody says that they are random, their twins are no more so than they, and shuffled images are told apart."""
    nets = {f"file{seed}": ("small", drawn(Small, 200 + seed)) for seed in range(3)}
    found = answers(tmp_path, in_files(tmp_path, nets), list(permutations(nets, 2)))
    tell("files", found, "above_chance", "above_shuffled", "above_untrained", "localised", "others_agree")
    others = [name for name in CHECKS if name != "above_chance"]
    print("files: all but above_chance", counted(found, lambda one: all(one["checks"][n] is not False for n in others)))
    for num, of in counted(found, is_supported).values():
        assert num <= 0.05 * of


# Where something does -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", ["turned", "tuned"])
def test_a_copy_is_found(planted, zoo, images: Images, tmp_path: Path) -> None:
    """Layers rotated and scaled, with weights off by a twentieth; or trained for three more epochs."""
    nets = {}
    for seed, (name, net) in enumerate(zoo.items()):
        nets[name] = "small", net
        if planted == "turned":
            nets[f"{name}_copy"] = "turned", turn(net, seed=seed, noise=0.05).eval()
        else:
            again = Small()
            again.load_state_dict(net.state_dict())
            nets[f"{name}_copy"] = "small", trained(again, images, epochs=3, seed=50 + seed, lr=1e-3)
    pairs = [(f"{name}_copy", name) for name in zoo]
    found = answers(tmp_path, in_files(tmp_path, nets), pairs, fit=images.fit.num, evaluated=images.eval.num)
    tell(planted, found, "above_chance", "above_shuffled", "above_untrained", "localised", "others_agree", "sound")
    right = counted(found, lambda one: is_supported(one) and one["source_layer"] == one["target_layer"])
    print(f"{planted}: supported, and the layer itself", right)
    for num, of in right.values():
        assert num >= 0.9 * of
    if planted == "turned":
        compare_with_store(tmp_path / "grid", nets["net0_copy"][1], zoo["net0"], images)


def compare_with_store(store: Path, copy: Small, net: Small, images: Images, *, block: int = 4) -> None:
    """Compare what is stored of a pair of layers with what the tests of intervals below compute."""

    def sample(split) -> calibration.Sample:  # type: ignore[no-untyped-def]
        with torch.no_grad():
            maps = [one.blocks[: block + 1](pixels(split)).flatten(2).mT for one in (copy, net)]
        return calibration.Sample(*maps, torch.as_tensor(split.labels))

    evaluated = sample(images.eval)
    told = calibration.of_moments(evaluated, fit_direct(sample(images.fit).moments).map, GROUPS)
    told["cka_unbiased"] = calibration.of_grams(evaluated, GROUPS)
    with Catalog(Store.open(store)) as catalog:
        rows = catalog.query(
            "select metric, value, low, high, replicates from results where source_model = 'net0_copy' "
            f"and source_layer = 'blocks.{block}' and target_layer = source_layer"
        ).to_pylist()
    found = {row["metric"]: row for row in rows}
    for metric, wanted in told.items():
        row = found[metric]
        assert (row["value"], *row["replicates"]) == pytest.approx((wanted.value, *wanted.replicates), rel=1e-4)
        assert (row["low"], row["high"]) == pytest.approx(wanted.interval, rel=1e-3)


# Shuffled images ------------------------------------------------------------------------------------------------------

SOURCES = tuple(f"l{number}" for number in range(8))
NUM_NULL, NULL_DRAWS = 128, 39  # images: two blocks
Null = tuple[float, list[float]]  # a value, and those of shuffled images


def of_unrelated_layers(generator: torch.Generator) -> dict[str, list[Null]]:
    """Return what eight layers of noise have in common with another one, by two indices."""
    sources, target = (torch.randn(num, NUM_NULL, 6, generator=generator) for num in (len(SOURCES), 1))
    orders = shuffled_orders(NUM_NULL, NULL_DRAWS)
    every_order = [torch.arange(NUM_NULL), *orders]
    pwcca, cka = (kind(kind.about.params()) for kind in (PWCCA, CKAUnbiased))
    wanted = cka.prepare(Gram(centred_NN=centred_gram(target[0])))
    found: dict[str, list[Null]] = {"pwcca": [], "cka_unbiased": []}
    for x in sources:
        gram = Gram(centred_NN=centred_gram(x))
        told = cka.compare([(cka.prepare(gram.of_images(order)), wanted) for order in every_order])["cka_unbiased"]
        found["cka_unbiased"].append((told[0].item(), told[1:].tolist()))
        moments = pair_moments(x, target[0])
        offset = NUM_NULL * torch.outer(moments.mean_x_D, moments.mean_y_E)
        shuffled = [replace(moments, xy_DE=x[order].double().T @ target[0].double() - offset) for order in every_order]
        told = pwcca.compare(shuffled)["pwcca"]
        found["pwcca"].append((told[0].item(), told[1:].tolist()))
    return found


def test_p_of_the_best_layer_is_uniform_where_nothing_corresponds(tmp_path: Path, monkeypatch) -> None:
    """And the smallest p of single layers is not: one in three would be below 0.05."""
    monkeypatch.setattr(helpers_answers, "LAYERS", SOURCES)
    generator = torch.Generator().manual_seed(7)
    targets = [(f"b{number}", layer) for number in range(50) for layer in SOURCES]
    cells, smallest = [], {"pwcca": [], "cka_unbiased": []}
    for model_, layer in targets:
        for kind, told in of_unrelated_layers(generator).items():
            sign = 1 if kind == "cka_unbiased" else -1
            single = [(1 + sum(sign * one >= sign * value for one in null)) / (1 + len(null)) for value, null in told]
            smallest[kind].append(min(single))
            for source, (value, null) in zip(SOURCES, told, strict=True):
                ends = {"source_model": "a", "source_layer": source, "target_model": model_, "target_layer": layer}
                cells.append(PlannedCell(**ends, matcher=kind, values={kind: value}, null=null))
    models = {name: {} for name in ["a", *(f"b{number}" for number in range(50))]}
    store = Planted(cells=cells, models=models, info={"shuffles": NULL_DRAWS}).write(tmp_path)
    with Catalog(store) as catalog:
        rows = catalog.query("select matcher, p from answers").to_pylist()
    for kind, uncorrected in smallest.items():
        p = [row["p"] for row in rows if row["matcher"] == kind]
        assert len(p) == len(uncorrected) == len(targets)
        counts = [sum(one - 0.1 < share - 1e-9 <= one for share in p) for one in torch.arange(1, 11).div(10).tolist()]
        below = {level: sum(one <= level + 1e-9 for one in p) for level in (0.05, 0.1, 0.5)}
        fit = chisquare(counts).pvalue
        wrong = sum(one <= 0.05 + 1e-9 for one in uncorrected) / len(uncorrected)
        print(f"\nnull {kind}: {below} of {len(p)}; chi-square p {fit:.2f}; smallest single p {wrong:.3f}")
        for level, num in below.items():
            assert binomtest(num, len(p), level).pvalue > 0.01, (kind, level)
        assert fit > 0.01
        assert 0.25 < wrong < 0.45  # 1 - 0.95^8 = 0.34


# Intervals ------------------------------------------------------------------------------------------------------------

SAMPLES = 400


def test_intervals_hold_what_all_images_would_give() -> None:
    """95 % intervals of cka_unbiased, direct's residual, accuracy and pwcca: 92 to 98 % hold the true value."""
    images = calibration.Images(seed=0)
    whole = images.draw(calibration.WHOLE)
    stitch = fit_direct(images.draw(300).moments).map  # held fixed
    mean_y = whole.y.mean(1)
    read = torch.linalg.lstsq(mean_y, functional.one_hot(whole.labels, calibration.CLASSES).float()).solution
    pwcca = PWCCA(PWCCA.about.params())
    true = {
        "pwcca": pwcca.compare([whole.moments])["pwcca"].item(),
        "residual": residual(stitch, whole.moments).item(),
        "cka_unbiased": calibration.cka_of(pair_moments(whole.x.flatten(1), whole.y.flatten(1))),
        "accuracy": calibration.is_right(whole, stitch, read).double().mean().item(),
    }
    held = dict.fromkeys(true, 0)
    for _ in range(SAMPLES):
        sample, more = images.draw(400), images.draw(1_000)
        share = calibration.is_right(sample, stitch, read).double().mean().item()
        intervals = {
            "pwcca": calibration.of_moments(more, stitch, GROUPS)["pwcca"].interval,
            "residual": calibration.of_moments(sample, stitch, GROUPS)["residual"].interval,
            "cka_unbiased": calibration.of_grams(sample, GROUPS).interval,
            "accuracy": wilson_interval(share, len(sample)),
        }
        for name, (low, high) in intervals.items():
            held[name] += low <= true[name] <= high
    print("\nintervals: of", SAMPLES, held, true)
    for name, num in held.items():
        assert 0.92 <= num / SAMPLES <= 0.98, name
