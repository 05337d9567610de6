"""Measures how fast a worker would be: the engine computes small pieces of a sweep where a worker would run.

Networks have random weights and images are noise, since neither changes how long the work takes. Only the code of the
networks is read, and nothing is written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch

from stitchgrid.engine.host import Host, Others, place_of, set_up_torch
from stitchgrid.engine.shard import run_shard
from stitchgrid.engine.workspace import Workspace
from stitchgrid.errors import InputError, is_out_of_memory
from stitchgrid.matchers.protocol import svd_flops
from stitchgrid.models.build import make_network
from stitchgrid.models.cut_network import cut_network_on
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.models.detector import Detector, make_detector
from stitchgrid.models.features import FeaturesNetwork, noise_features
from stitchgrid.models.freeze import freeze
from stitchgrid.models.training import train_network
from stitchgrid.precision import choose_device, running_in
from stitchgrid.preprocess import apply_preprocess
from stitchgrid.profiling.sample import FIRST_IMAGES, NOISE_IMAGES, Noise, NoisePair, Pair, SweepSample, shrink
from stitchgrid.records import Network, Preprocess, Shard, Sweep
from stitchgrid.statistics.base import LayerKey

TRIAL_SECONDS = 2.0  # for the last and largest pieces of all pairs together, roughly
PASS_SECONDS = 0.15  # for plain passes of one network
TRAINING_SECONDS, TRAINING_EPOCHS = 0.3, 4  # for the training of one network
MOST_IMAGES = 2048  # of a piece
GROWTH = 2  # from one piece to the next
LEVER = 4  # the largest piece has this many times the images of the piece it is compared with, if time allows
LONGEST_SECONDS = 15.0  # after which no other pair is begun
LATE = 12  # times the wanted seconds, after which no other piece of a pair is begun
SVD_SIDE = 384
PRODUCT_SIDE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialQuestion:
    """What a trial is to measure."""

    sweep: Sweep
    pairs: tuple[Pair, ...]
    training: tuple[int, ...] = ()  # networks whose training is timed
    device: str  # auto | cpu | cuda
    threads: int | None  # None: one per CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast the shards of a network pair are computed: seconds = FLOPs / flops_per_second + cells * cell_seconds."""

    flops_per_second: float
    cell_seconds: float  # per cell, for any number of images


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The speeds that a trial measured."""

    place: Host
    paces: dict[Pair, Pace]
    training_flops_per_second: dict[int, float]  # by network
    pass_flops_per_second: float  # of plain forward passes, over all networks that were run
    svd_flops_per_second: float  # in float64, by `svd_flops`
    problems: tuple[str, ...] = ()  # networks, pairs and trainings that could not be timed, with the reason


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPiece:
    """The size and the time of one piece that was computed."""

    num_images: int
    flops: float
    seconds: float


def run_trial(question: TrialQuestion) -> Trial:
    """Compute a small piece of each network pair that is asked for, and return how fast that was.

    A pair has no pace if nothing of it can be computed: untrained networks may overflow, or memory may run out. Neither
    have the last pairs if the others took too long.

    Raises:
        InputError: If there is no such device, or no network can be run here.
    """
    device = torch.device(choose_device(question.device))
    before = torch.get_num_threads()
    set_up_torch(question.threads)
    try:
        return _try(question, device)
    finally:
        torch.set_num_threads(before)


def _try(question: TrialQuestion, device: torch.device) -> Trial:
    sweep, networks, others = question.sweep, dict[int, CutNetwork](), Others()
    flops, seconds, problems = 0.0, 0.0, list[str]()
    paces: dict[Pair, Pace] = {}
    for position in sorted({position for pair in question.pairs for position in pair}):
        try:
            network = random_network(sweep.networks[position], device)
            more = _passes(network, sweep, device)
        except Exception as problem:  # the network's own code fails, or memory runs out
            problems.append(f"{sweep.networks[position].name}: {problem}")
        else:
            networks[position] = network
            flops, seconds = flops + more.flops, seconds + more.seconds
    if not networks:
        raise InputError(f"no network could be run to measure its speed; {'; '.join(problems)}")
    each = TRIAL_SECONDS / max(1, len(question.pairs))
    stop = perf_counter() + LONGEST_SECONDS
    for pair in (pair for pair in question.pairs if networks.keys() >= set(pair)):
        if perf_counter() > stop:
            break
        sample = shrink(sweep, pair, max_flops=each / 4 * flops / seconds)
        try:
            pieces = _pieces(sample, [networks[position] for position in dict.fromkeys(pair)], device, seconds=each / 2)
        except Exception as problem:
            if not isinstance(problem, InputError) and not is_out_of_memory(problem):
                raise
            problems.append(f"{' into '.join(sweep.networks[position].name for position in pair)}: {problem}")
        else:
            paces[pair] = pace_of(pieces, num_cells=sample.num_cells)
    training: dict[int, float] = {}
    for position in question.training:
        try:
            training[position] = _training_speed(sweep.networks[position], device, flops / seconds)
        except Exception as problem:
            problems.append(f"the training of {sweep.networks[position].name}: {problem}")
    return Trial(
        training_flops_per_second=training,
        place=place_of(device, sweep.precision, others),
        paces=paces,
        pass_flops_per_second=flops / seconds,
        svd_flops_per_second=_svd_speed(device),
        problems=tuple(problems),
    )


def random_network(record: Network, device: torch.device) -> CutNetwork:
    """Return a network with the random weights of its architecture; for features, random activations."""
    if record.spec.is_features:
        return noise_features(record, device)
    module = freeze(make_network(record.spec))
    return cut_network_on(device, module, record.input_shape, name=record.name, interface=record.spec.interface)


@torch.no_grad()
def _passes(network: CutNetwork, sweep: Sweep, device: torch.device) -> TrialPiece:
    """Run a network on noise for a moment; for features, which are not run, multiply matrices instead."""
    if isinstance(network, FeaturesNetwork):
        square = torch.rand(PRODUCT_SIDE, PRODUCT_SIDE, device=device)
        seconds = min(_timed(lambda: square @ square, device) for _ in range(2))
        return TrialPiece(num_images=1, flops=2.0 * PRODUCT_SIDE**3, seconds=seconds)
    num_images = min(sweep.batch_size, sweep.num_eval, NOISE_IMAGES)
    images = torch.rand(num_images, *network.input_shape, device=device).contiguous(memory_format=torch.channels_last)
    run = network.taps([network.logits])
    with running_in(sweep.precision, device):
        _timed(lambda: run(images), device)
        passes, seconds = 0, 0.0
        while seconds < PASS_SECONDS:
            seconds += _timed(lambda: run(images), device)
            passes += 1
    return TrialPiece(num_images=num_images, flops=network.flops * num_images * passes, seconds=seconds)


def _training_speed(record: Network, device: torch.device, pass_speed: float) -> float:
    """Return the speed (FLOP/s) of training a network by its recipe, counted as three passes per image."""
    recipe = record.spec.recipe
    assert recipe is not None
    step = 3 * record.flops
    num_images = max(2, min(2 * recipe.batch_size, int(TRAINING_SECONDS / TRAINING_EPOCHS * pass_speed / step)))
    few = replace(recipe, epochs=TRAINING_EPOCHS, batch_size=min(recipe.batch_size, num_images), lr=1e-6)
    size, channels = record.input_shape[1:], record.preprocess.image_channels
    noise = Noise(num_images, size, max(1, record.num_classes), torch.device("cpu"), channels=channels)
    ends: list[float] = []  # of epochs: the first one is not counted
    train_network(
        replace(record.spec, recipe=few),
        noise,
        lambda pixels: apply_preprocess(pixels, Preprocess(channels=record.preprocess.channels)),
        device=device,
        on_epoch=lambda *_: ends.append(perf_counter()),
    )
    return step * num_images * (len(ends) - 1) / (ends[-1] - ends[0])


def _svd_speed(device: torch.device) -> float:
    square = torch.rand(SVD_SIDE, SVD_SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    seconds = min(_timed(lambda: torch.linalg.svd(square, full_matrices=False), device) for _ in range(2))
    return svd_flops(SVD_SIDE, SVD_SIDE) / seconds


def _timed(compute: Callable[[], object], device: torch.device) -> float:
    start = perf_counter()
    compute()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start


def _pieces(
    sample: SweepSample, networks: Sequence[CutNetwork], device: torch.device, *, seconds: float
) -> Sequence[TrialPiece]:
    """Compute a sample on more and more images, until a piece takes `seconds` or memory runs out.

    The pieces that the pace is computed from are computed twice, and the faster time counts, since other processes may
    use the machine as well.
    """
    most, stop = min(MOST_IMAGES, sample.most_images), perf_counter() + LATE * seconds
    num_images, pieces = min(FIRST_IMAGES, most), dict[int, TrialPiece]()
    first = _piece(sample, networks, device, num_images)  # brings what is needed into memory
    if perf_counter() > stop:
        return [first]
    while True:
        try:
            pieces[num_images] = _piece(sample, networks, device, num_images)
        except Exception as problem:
            if not pieces or not is_out_of_memory(problem):
                raise
            break
        is_enough = pieces[num_images].seconds >= seconds and num_images >= LEVER * FIRST_IMAGES
        if is_enough or num_images >= most or perf_counter() > stop:
            break
        num_images = min(GROWTH * num_images, most)
    for num_images in [num for num in pieces if num in (max(pieces), max(pieces) // LEVER)]:
        if perf_counter() < stop:
            again = _piece(sample, networks, device, num_images)
            pieces[num_images] = min(pieces[num_images], again, key=lambda piece: piece.seconds)
    return list(pieces.values())


def _piece(sample: SweepSample, networks: Sequence[CutNetwork], device: torch.device, num_images: int) -> TrialPiece:
    """Compute a sample on `num_images` images.

    Raises:
        InputError: If no cell got a value.
    """
    sweep = sample.on(num_images)
    target = sweep.networks[sample.block.target]
    num_classes = max(1, min(network.num_classes for network in sweep.networks))
    channels = next((one.preprocess.image_channels for one in sweep.networks if not one.spec.is_features), 3)
    noise = Noise(sample.most_images, target.input_shape[1:], num_classes, device, channels=channels)
    work = Workspace(
        sweep=sweep,
        images=NoisePair(fit=noise, eval=noise),
        network=networks.__getitem__,
        device=device,
        detector=lambda key: _detector(sweep, key, device),
    )
    shard = Shard(
        unit_id="trial",
        blocks=(sample.block,),
        matchers=tuple(range(len(sweep.matchers))),
        flops=sample.flops(num_images),
        num_cells=sample.num_cells,
    )
    rows = []
    seconds = _timed(lambda: rows.extend(run_shard(shard, work)), device)
    errors = {row.cell_id: row.error for row in rows if row.error is not None}
    if len(errors) == sample.num_cells:
        raise InputError(next(iter(errors.values())))
    return TrialPiece(num_images=num_images, flops=shard.flops * (1 - len(errors) / sample.num_cells), seconds=seconds)


def _detector(sweep: Sweep, key: LayerKey, device: torch.device) -> Detector:
    assert sweep.energy is not None
    network = sweep.networks[key[0]]
    height, width = network.input_shape[1:]
    detector = make_detector(
        network.layers[key[1]], sweep.energy.recipe, size=(height, width), num_classes=max(1, network.num_classes)
    )
    return detector.eval().requires_grad_(False).to(device)


def pace_of(pieces: Sequence[TrialPiece], *, num_cells: int) -> Pace:
    """Return the pace from pieces of one sample, the largest last; time that does not grow with images is per cell.

    >>> pace_of([TrialPiece(num_images=n, flops=n, seconds=2 + n / 4) for n in (8, 64)], num_cells=10)
    Pace(flops_per_second=4.0, cell_seconds=0.2)
    """
    last = pieces[-1]
    smaller = [piece for piece in pieces[:-1] if LEVER * piece.num_images <= last.num_images] or pieces[:-1][:1]
    speed = last.flops / last.seconds
    if smaller and last.flops > smaller[-1].flops and last.seconds > 1.2 * smaller[-1].seconds:
        rise = (last.flops - smaller[-1].flops) / (last.seconds - smaller[-1].seconds)
        speed = max(speed, rise)
    left = max(0.0, last.seconds - last.flops / speed)  # rounding may make it negative
    return Pace(flops_per_second=speed, cell_seconds=left / num_cells)
