"""Measures a worker's speed: in this process if workers would run on this machine, else on their cluster."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch

from stitchgrid.cluster import call_remotely
from stitchgrid.cluster.placement import Placement
from stitchgrid.cluster.sizing import ClusterSize, check_shares, choose_size
from stitchgrid.cpus import num_cpus
from stitchgrid.engine.memory import available_bytes
from stitchgrid.models.user_code import staged
from stitchgrid.profiling.sample import Pair
from stitchgrid.profiling.trial import Trial, TrialQuestion, run_trial
from stitchgrid.records import Sweep


@dataclass(frozen=True, kw_only=True)
class SpeedTrial:
    """The measured speed of a worker, and the number of workers that there would be."""

    trial: Trial
    size: ClusterSize
    speed_share: float  # speed of a worker while all of them work, over its speed alone


def measure_speed(
    sweep: Sweep,
    pairs: Iterable[Pair],
    training: Iterable[int],
    where: Placement,
    *,
    device: str,
    max_units: int,
    say: Callable[[str], None],
) -> SpeedTrial:
    """Compute pieces of these network pairs, and of these networks' training, where workers would compute them.

    If a cluster gives no answer, `say` gets the reason, and this process measures its own speed instead.

    Raises:
        ClusterError: If there is no cluster at the address, or no GPU though one is asked for.
        InputError: If a number or the address is invalid, or nothing can be computed here.
    """
    question = TrialQuestion(
        sweep=sweep,
        pairs=tuple(pairs),
        training=tuple(training),
        device=where.device(device),
        threads=where.threads,
    )
    if where.address not in (None, "local", "none"):
        with staged([network.spec for network in sweep.networks]) as package:
            call = call_remotely(
                where.address,
                partial(run_trial, question),
                workers=where.workers,
                cpus_per_worker=where.cpus_per_worker,
                gpus_per_worker=where.gpus_per_worker,
                max_units=max_units,
                package=package,
            )
        if not call.problem:
            return SpeedTrial(trial=call.answer, size=call.size, speed_share=_share_of_gpu(call.size))
        say(f"No worker's speed could be measured: {call.problem}. This machine's is taken instead.")
        return SpeedTrial(trial=_here(question, say), size=call.size, speed_share=_share_of_gpu(call.size))
    size = local_size(where, max_units)
    share = _share_of_gpu(size)
    if size.cpus and not size.gpus:
        share = min(1.0, num_cpus() / (size.num_workers * size.cpus))
    return SpeedTrial(trial=_here(question, say), size=size, speed_share=share)


def local_size(where: Placement, max_units: int) -> ClusterSize:
    """Return the pool that a launch on this machine would start, without asking Ray."""
    check_shares(where.workers, where.cpus_per_worker, where.gpus_per_worker)
    if where.address == "none":
        return ClusterSize(num_workers=1, cpus=0, gpus=0)
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


def _share_of_gpu(size: ClusterSize) -> float:
    return min(1.0, size.gpus) if size.gpus else 1.0


def _here(question: TrialQuestion, say: Callable[[str], None]) -> Trial:
    if question.device == "cuda" and not torch.cuda.is_available():
        say("The job asks for a GPU, but torch finds none on this machine; the speed of its CPU is taken instead.")
        question = replace(question, device="cpu")
    return run_trial(question)
