"""What Ray's errors say about the death of a worker."""

from collections.abc import Callable

from stitchgrid.scheduler import Cause


def classify_death(problem: Exception, *, is_node_alive: Callable[[], bool], was_ready: bool) -> Cause:
    """Return what the error of a call to an actor says about its death.

    Only a worker that dies while its node lives has died of what it was doing.
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


def node_lives(node: str) -> bool:
    """Return whether Ray takes a node for alive; so it does an unknown one."""
    import ray

    return not node or any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())


def in_short(problem: Exception) -> str:
    """Return the line that matters of one of Ray's long messages."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    telling = [line for line in lines if "Worker exit type" in line or "Memory on the node" in line]
    return f"{type(problem).__name__}: {' '.join((telling or lines[-1:] or ['no message'])[0].split())[:300]}"
