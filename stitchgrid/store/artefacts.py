"""Artefacts: what is computed once and used by many cells, under a key; the first writer wins."""

import json

from stitchgrid.errors import StoreError
from stitchgrid.records import canonical
from stitchgrid.store.files import Files
from stitchgrid.store.layout import SUFFIXES, Layout, content_digest


class Artefacts:
    """All artefacts of a store.

    Data are written under their own digest and a manifest names them: the manifest decides who was first, and a
    reader can tell damaged data from good ones although the key says nothing about the content.
    """

    def __init__(self, files: Files):
        self.files = files

    def has(self, kind: str, key: str) -> bool:
        """Return whether the artefact is there."""
        return self.files.exists(Layout.manifest(kind, key))

    def write(self, kind: str, key: str, data: bytes) -> bool:
        """Write an artefact unless there is one; return whether this call's data are the artefact now."""
        if self.has(kind, key):
            return False
        data_digest = content_digest(data)
        self.files.replace(Layout.artefact(kind, key, data_digest), data)
        manifest = canonical({"digest": data_digest, "num_bytes": len(data), "suffix": SUFFIXES[kind]})
        return self.files.write_once(Layout.manifest(kind, key), manifest.encode())

    def read(self, kind: str, key: str) -> bytes:
        """Return the data of an artefact.

        Raises:
            StoreError: If it is missing or damaged.
        """
        manifest = Layout.manifest(kind, key)
        if not self.files.exists(manifest):
            raise StoreError(f"the store {self.files.uri} has no {kind} {key}; launch the sweep that makes it.")
        try:
            data_digest = str(json.loads(self.files.read(manifest))["digest"])
            data = self.files.read(Layout.artefact(kind, key, data_digest))
        except (ValueError, TypeError, KeyError, StoreError) as problem:
            raise self._damaged(kind, key, str(problem)) from problem
        if content_digest(data) != data_digest:
            raise self._damaged(kind, key, f"its {len(data)} bytes differ from the digest in its manifest")
        return data

    def _damaged(self, kind: str, key: str, reason: str) -> StoreError:
        return StoreError(
            f"the {kind} {key} in the store {self.files.uri} is damaged: {reason}; delete "
            f"{self.files.where(Layout.manifest(kind, key))} and launch again to have it made anew."
        )
