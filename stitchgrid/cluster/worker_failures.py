"""The cause of a worker's death, read from Ray's errors."""

from collections.abc import Callable

from stitchgrid.scheduler import Cause


def classify_death(problem: Exception, *, is_node_alive: Callable[[], bool], was_ready: bool) -> Cause:
    """Return the cause of an actor's death, from the error of a call to it.

    The cause is "crash" only if the node is alive: else the unit that the worker computed is not to blame.
    """
    from ray import exceptions

    if isinstance(problem, exceptions.OutOfMemoryError):  # Ray's memory monitor; no subclass of RayActorError
        return "crash"
    if isinstance(problem, exceptions.ActorDiedError):
        if problem.actor_init_failed:
            return "init"
        if problem.preempted or "node has died" in str(problem) or not is_node_alive():
            return "infrastructure"
        return "crash"
    return "infrastructure" if was_ready or isinstance(problem, exceptions.ActorUnavailableError) else "init"


def in_short(problem: Exception) -> str:
    """Return the important part of one of Ray's long messages, in one line."""
    text = " ".join(str(problem).split())
    kind, _, detail = text.partition("Worker exit type: ")[2].partition(" Worker exit detail: ")
    if detail:
        return f"the worker's process ended ({kind}): {detail.split(' Some common causes')[0][:200]}"
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    telling = [line for line in lines if "Memory on the node" in line or "node has died" in line] or lines[-1:]
    return f"{type(problem).__name__}: {' '.join(telling)[:300]}"
