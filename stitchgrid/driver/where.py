"""Where and how a launch computes, or would."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where and how to compute; changes no value beyond rounding."""

    address: str = "local"
    workers: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float | None = None
    keeps_passes: bool = False  # what a pass over the evaluation images leaves serves the next: a worker of one sweep
    drain_seconds: float = 60.0  # for what is in flight when the launch is told to stop

    def device(self, asked: str) -> str:
        """Return the device for workers, where a job asks for this one: Ray lets those without a GPU see it even so."""
        gives_none = self.gpus_per_worker == 0 and self.address != "none"
        return "cpu" if asked == "auto" and gives_none else asked

    @property
    def threads(self) -> int | None:
        """Threads of one worker, None: one per CPU."""
        if self.address == "none" and self.cpus_per_worker is None:
            return None
        return max(1, int(self.cpus_per_worker or 1))
