"""Has a worker's speed measured: in this process where workers would run on this machine, else on their cluster."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch

from stitchgrid.cluster import run_errand
from stitchgrid.cluster.sizing import Size, check_shares, choose_size
from stitchgrid.cpus import num_cpus
from stitchgrid.driver.where import Where
from stitchgrid.engine.memory import available_bytes
from stitchgrid.engine.sample import Pair
from stitchgrid.engine.trial import Question, Trial, run_trial
from stitchgrid.models.own_code import staged
from stitchgrid.records import Sweep


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What a worker's speed is, and how many workers there would be."""

    trial: Trial
    size: Size
    speed_share: float  # of a worker's speed alone that each has while all work


def try_out(
    sweep: Sweep,
    pairs: Iterable[Pair],
    training: Iterable[int],
    where: Where,
    *,
    device: str,
    max_units: int,
    say: Callable[[str], None],
) -> Tried:
    """Have pieces of these network pairs, and of these networks' training, computed where workers would compute.

    Where a cluster gives no answer, `say` is told why, and this process takes the worker's place.

    Raises:
        ClusterError: If there is no cluster at the address, or no GPU where one is asked for.
        InputError: If a number or the address cannot be meant, or nothing can be computed here.
    """
    question = Question(
        sweep=sweep,
        pairs=tuple(pairs),
        training=tuple(training),
        device=where.device(device),
        threads=where.threads,
    )
    if where.address not in (None, "local", "none"):
        with staged([network.spec for network in sweep.networks]) as package:
            errand = run_errand(
                where.address,
                partial(run_trial, question),
                workers=where.workers,
                cpus_per_worker=where.cpus_per_worker,
                gpus_per_worker=where.gpus_per_worker,
                max_units=max_units,
                package=package,
            )
        if not errand.problem:
            return Tried(trial=errand.answer, size=errand.size, speed_share=_share_of_gpu(errand.size))
        say(f"No worker's speed could be measured: {errand.problem}. This machine's is taken instead.")
        return Tried(trial=_here(question, say), size=errand.size, speed_share=_share_of_gpu(errand.size))
    size = local_size(where, max_units)
    share = _share_of_gpu(size)
    if size.cpus and not size.gpus:
        share = min(1.0, num_cpus() / (size.num_workers * size.cpus))
    return Tried(trial=_here(question, say), size=size, speed_share=share)


def local_size(where: Where, max_units: int) -> Size:
    """Return the pool that a launch on this machine would start, without asking Ray."""
    check_shares(where.workers, where.cpus_per_worker, where.gpus_per_worker)
    if where.address == "none":
        return Size(num_workers=1, cpus=0, gpus=0)
    resources = {
        "CPU": float(num_cpus()),
        "GPU": float(torch.cuda.device_count()),
        "memory": float(available_bytes(torch.device("cpu"))),
    }
    return choose_size(
        resources,
        workers=where.workers,
        cpus_per_worker=where.cpus_per_worker,
        gpus_per_worker=where.gpus_per_worker,
        max_units=max_units,
        is_local=True,
    )


def _share_of_gpu(size: Size) -> float:
    return min(1.0, size.gpus) if size.gpus else 1.0


def _here(question: Question, say: Callable[[str], None]) -> Trial:
    if question.device == "cuda" and not torch.cuda.is_available():
        say("The job asks for a GPU and this machine has none that torch can use; its CPU's speed is taken instead.")
        question = replace(question, device="cpu")
    return run_trial(question)
