"""Where and how a launch computes."""

from dataclasses import dataclass, replace

# Seconds of work for one worker, at the assumed speed, below which starting Ray takes longer than it saves.
SMALL_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how to compute; it changes values by no more than rounding."""

    address: str | None = None  # None: in this process if the work is small, else on this machine with Ray
    workers: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float | None = None
    drain_seconds: float = 60.0  # time to finish running units when the launch is told to stop

    def settled(self, seconds: float) -> "Placement":
        """Return the placement with an address; `seconds` is the work for one worker at the assumed speed."""
        if self.address is not None:
            return self
        names_workers = any(one is not None for one in (self.workers, self.gpus_per_worker, self.cpus_per_worker))
        if seconds > SMALL_S or names_workers:
            return replace(self, address="local")
        return replace(self, address="none")

    @property
    def keeps_passes(self) -> bool:
        """Whether later units can reuse a pass over the evaluation images: only if one worker computes all units."""
        return self.address == "none"

    def device(self, asked: str) -> str:
        """Return the device for workers; `asked` is the job's. Workers without a GPU see it under Ray, so: "cpu"."""
        gives_none = self.gpus_per_worker == 0 and self.address != "none"
        return "cpu" if asked == "auto" and gives_none else asked

    @property
    def threads(self) -> int | None:
        """Threads of one worker; None means one per CPU."""
        if self.address == "none" and self.cpus_per_worker is None:
            return None
        return max(1, int(self.cpus_per_worker or 1))
