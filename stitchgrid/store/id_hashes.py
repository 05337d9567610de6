"""Hashes of cell ids, 64 bits each: they show fast and in little memory that two tables share no cell.

If two tables share a hash, they almost certainly share a cell; code that has to be certain compares the ids.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.store.duplicates import Numbers
from stitchgrid.store.schemas import TEXT

ID_DIGITS = 32  # of the id of a cell, in hex
FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], np.uint64)


def id_hashes(ids: pa.Array | pa.ChunkedArray) -> Numbers:
    """Return the hashes of the distinct ids, uint64, sorted; the hash of an id does not depend on other ids."""
    unique: Numbers = np.unique(hashes_of_each(ids))
    return unique


def hashes_of_each(ids: pa.Array | pa.ChunkedArray) -> Numbers:
    """Return the hash of every id, uint64, in their order."""
    array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    array = array.cast(TEXT)
    is_usual = pc.fill_null(pc.equal(pc.binary_length(array), ID_DIGITS), False)
    if pc.all(is_usual).as_py():
        return _of_usual(array)
    mask = is_usual.to_numpy(zero_copy_only=False)
    digests = (hashlib.sha256(str(one).encode()).digest()[:8] for one in array.filter(pc.invert(is_usual)).to_pylist())
    found = np.zeros(len(array), np.uint64)
    found[mask] = _of_usual(array.filter(is_usual))
    found[~mask] = _bits([int.from_bytes(one, "little") for one in digests])
    return found


def _of_usual(array: pa.Array) -> Numbers:
    """Return the hash of every id; all ids have the usual length."""
    if not len(array):
        return _bits([])
    begin = int(np.frombuffer(array.buffers()[1], np.int32)[array.offset])
    texts = np.frombuffer(array.buffers()[2], np.uint8)[begin : begin + len(array) * ID_DIGITS]
    found: Numbers = np.bitwise_xor.reduce(texts.view(np.uint64).reshape(-1, 4) * FACTORS, axis=1)  # modulo 2**64
    return found


def _bits(numbers: Sequence[int]) -> Numbers:
    return np.array(numbers, np.uint64)


def meet(one: Numbers, other: Numbers) -> bool:
    """Return whether two tables with these hashes, which are sorted, share a cell."""
    few, many = sorted((one, other), key=len)
    if not len(few) or few[0] > many[-1] or many[0] > few[-1]:
        return False
    place = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return bool((many[place] == few).any())
