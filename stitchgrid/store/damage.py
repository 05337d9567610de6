"""Damaged files of a store: readers leave them out and name them."""

from dataclasses import dataclass

from stitchgrid.errors import NO_PERMISSION


class DamagedFileError(Exception):
    """A file whose content is not what its name or manifest says; never leaves the store's package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A file of the store that cannot be trusted and was left out."""

    file: str  # relative to the store
    reason: str

    @property
    def is_forbidden(self) -> bool:
        """Whether the file may be sound, but this user may not read it."""
        return self.reason.startswith(NO_PERMISSION)

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"
