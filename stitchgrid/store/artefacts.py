"""Artefacts: what is computed once and used by many cells, under a key; the first writer wins."""

from collections.abc import Iterator

from stitchgrid.errors import StoreError
from stitchgrid.records import canonical
from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.documents import OF_ARTEFACTS, ArtefactDocument, json_object, longest, read_document
from stitchgrid.store.files import Files
from stitchgrid.store.layout import SUFFIXES, Layout, content_digest, is_safe
from stitchgrid.store.limits import LONGEST_FILE

MANIFEST = ".manifest"


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
            return artefact_content(self.files, kind, key)
        except (DamagedFileError, StoreError) as problem:
            raise self._damaged(kind, key, str(problem)) from problem

    def _damaged(self, kind: str, key: str, reason: str) -> StoreError:
        return StoreError(
            f"the {kind} {key} in the store {self.files.uri} is damaged: {reason}; delete "
            f"{self.files.where(Layout.manifest(kind, key))} and launch again to have it made anew."
        )


def artefact_keys(files: Files) -> Iterator[tuple[str, str]]:
    """Yield kind and key of every artefact that has a manifest, sound or not."""
    for kind in SUFFIXES:
        for name in files.names(f"artefacts/{kind}"):
            if name.endswith(MANIFEST) and is_safe(name):
                yield kind, name.removesuffix(MANIFEST)


def artefact_content(files: Files, kind: str, key: str) -> bytes:
    """Return the data of an artefact that is what its manifest says, and what an artefact of its kind has to be.

    Raises:
        DamagedFileError: If its manifest or its data are damaged.
        StoreError: If either cannot be read.
    """
    manifest = read_document(files, Layout.manifest(kind, key), ArtefactDocument)
    document = OF_ARTEFACTS.get(kind)
    most = LONGEST_FILE if document is None else longest(document)
    promised = manifest.get("num_bytes")
    data = files.read(Layout.artefact(kind, key, manifest["digest"]), min(most, promised) if promised else most)
    if content_digest(data) != manifest["digest"]:
        raise DamagedFileError(f"its {len(data)} bytes differ from the digest in its manifest")
    if document is not None:
        json_object(data, document)
    return data
