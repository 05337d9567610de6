"""What readers of a store do with a file that is not what it should be: they leave it out, and name it."""

from dataclasses import dataclass


class DamagedFileError(Exception):
    """A file whose content is not what its name or manifest says; never leaves the store's package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A file of the store that cannot be trusted and was left out."""

    file: str  # relative to the store
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"
