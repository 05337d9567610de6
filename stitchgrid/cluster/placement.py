"""Where and how a launch computes, or would."""

from dataclasses import dataclass, replace

SMALL_S = 10.0  # of one worker at the assumed speed: in less, starting Ray and its workers takes longer than it saves


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how to compute; changes no value beyond rounding."""

    address: str | None = None  # None: in this process where the work is small, else on Ray of this machine
    workers: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float | None = None
    drain_seconds: float = 60.0  # for what is in flight when the launch is told to stop

    def settled(self, seconds: float) -> "Placement":
        """Return the same with an address, for work that takes one worker so many seconds at the assumed speed."""
        if self.address is not None:
            return self
        names_workers = any(one is not None for one in (self.workers, self.gpus_per_worker, self.cpus_per_worker))
        if seconds > SMALL_S or names_workers:
            return replace(self, address="local")
        return replace(self, address="none")

    @property
    def keeps_passes(self) -> bool:
        """Whether what a pass over the evaluation images leaves serves the next: where one worker does all."""
        return self.address == "none"

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
