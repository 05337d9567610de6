"""How long the shards of a launch may take, measured before the first of them has ended."""

from stitchgrid.cluster.placement import Placement
from stitchgrid.driver.estimate import estimate, pairs_to_try
from stitchgrid.errors import StitchgridError
from stitchgrid.planning import CPU_SPEED, Plan
from stitchgrid.precision import choose_device
from stitchgrid.profiling.speed_trial import local_size, measure_speed

LONG_S = 120.0  # at an assumed speed that few machines reach; a shorter launch is not timed beforehand


def expected_seconds(plan: Plan, where: Placement, *, device: str, max_units: int) -> float | None:
    """Return the seconds that the rest of a plan takes on the CPUs of this machine; None if they are not known.

    It times a few seconds of the same work on random images, as `stitchgrid plan` does. It returns None at once for a
    short launch, a cluster or a GPU: a trial would delay the first, and take the others from the workers.
    """
    if where.address not in ("local", "none"):
        return None
    try:
        size = local_size(where, max_units)
        is_long = plan.flops / (CPU_SPEED * size.num_workers) > LONG_S
        if not is_long or size.gpus or choose_device(where.device(device)) != "cpu":
            return None
        measured_speed = measure_speed(
            plan.sweep,
            pairs_to_try(plan.sweep, plan.todo),
            (),
            where,
            device="cpu",
            max_units=max_units,
            say=lambda _: None,
        )
    except StitchgridError:  # the launch itself says what is wrong
        return None
    found = estimate(
        plan,
        measured_speed.trial,
        image_bytes=0,
        num_workers=measured_speed.size.num_workers,
        speed_share=measured_speed.speed_share,
        before=(),
    )
    return found.seconds
