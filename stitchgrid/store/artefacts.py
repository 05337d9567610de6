"""Artefacts: results that are computed once, kept under a key and used by many cells; the first writer wins."""

from collections.abc import Iterator

from stitchgrid.errors import StoreError
from stitchgrid.records import canonical
from stitchgrid.store.damage import DamagedFileError
from stitchgrid.store.documents import OF_ARTEFACTS, ArtefactDocument, json_object, longest, read_document
from stitchgrid.store.files import Files
from stitchgrid.store.layout import SUFFIXES, StoreLayout, content_digest, is_safe
from stitchgrid.store.limits import LONGEST_FILE

MANIFEST = ".manifest"


class Artefacts:
    """All artefacts of a store.

    Data are written under their own digest, and a manifest names them: the manifest decides which writer was first, and
    a reader can recognise damaged data although the key says nothing about the content.
    """

    def __init__(self, files: Files):
        self.files = files

    def has(self, kind: str, key: str) -> bool:
        """Return whether the store has the artefact."""
        return self.files.exists(StoreLayout.manifest(kind, key))

    def generation(self, kind: str, key: str) -> int:
        """Return the generation of the cells for which an artefact was made anew, 0 where it was not.

        Raises:
            StoreError: If its manifest is damaged or cannot be read.
        """
        try:
            found = read_document(self.files, StoreLayout.manifest(kind, key), ArtefactDocument)
        except DamagedFileError as problem:
            raise self._damaged(kind, key, str(problem)) from problem
        return int(found.get("generation", 0))

    def write(self, kind: str, key: str, data: bytes, *, generation: int = 0) -> bool:
        """Write an artefact unless there is one; return whether this call's data are now the artefact.

        An artefact of an earlier generation is replaced.
        """
        is_there = self.has(kind, key)
        if is_there and (not generation or self.generation(kind, key) >= generation):
            return False
        data_digest = content_digest(data)
        self.files.replace(StoreLayout.artefact(kind, key, data_digest), data)
        found = {"digest": data_digest, "num_bytes": len(data), "suffix": SUFFIXES[kind]}
        manifest = canonical(found | ({"generation": generation} if generation else {})).encode()
        if not is_there:
            return self.files.write_once(StoreLayout.manifest(kind, key), manifest)
        self.files.replace(StoreLayout.manifest(kind, key), manifest)
        return True

    def read(self, kind: str, key: str) -> bytes:
        """Return the data of an artefact.

        Raises:
            StoreError: If it is missing or damaged.
        """
        manifest = StoreLayout.manifest(kind, key)
        if not self.files.exists(manifest):
            raise StoreError(f"the store {self.files.uri} has no {kind} {key}; launch the sweep that makes it.")
        try:
            return artefact_content(self.files, kind, key)
        except (DamagedFileError, StoreError) as problem:
            raise self._damaged(kind, key, str(problem)) from problem

    def _damaged(self, kind: str, key: str, reason: str) -> StoreError:
        return StoreError(
            f"the {kind} {key} in the store {self.files.uri} is damaged: {reason}; delete "
            f"{self.files.where(StoreLayout.manifest(kind, key))} and launch again to have it made anew."
        )


def artefact_keys(files: Files) -> Iterator[tuple[str, str]]:
    """Yield kind and key of every artefact that has a manifest, sound or not."""
    for kind in SUFFIXES:
        for name in files.names(f"artefacts/{kind}"):
            if name.endswith(MANIFEST) and is_safe(name):
                yield kind, name.removesuffix(MANIFEST)


def artefact_content(files: Files, kind: str, key: str) -> bytes:
    """Return the data of an artefact, checked against its manifest and against the form of its kind.

    Raises:
        DamagedFileError: If its manifest or its data are damaged.
        StoreError: If either cannot be read.
    """
    manifest = read_document(files, StoreLayout.manifest(kind, key), ArtefactDocument)
    document = OF_ARTEFACTS.get(kind)
    most = LONGEST_FILE if document is None else longest(document)
    promised = manifest.get("num_bytes")
    data = files.read(StoreLayout.artefact(kind, key, manifest["digest"]), min(most, promised) if promised else most)
    if content_digest(data) != manifest["digest"]:
        raise DamagedFileError(f"its {len(data)} bytes differ from the digest in its manifest")
    if document is not None:
        json_object(data, document)
    return data
