"""Cells of many rows in little memory: 64 bits of each id, by which it is seen fast that two tables share no cell.

That they do share one is as good as certain, and whoever needs to know looks at the ids.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stitchgrid.store.duplicates import Numbers
from stitchgrid.store.schemas import TEXT

ID_DIGITS = 32  # of the id of a cell, in hex
FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], np.uint64)


def prints(ids: pa.Array | pa.ChunkedArray) -> Numbers:
    """Return 64 bits of each distinct id, sorted."""
    array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    array = array.cast(TEXT)
    if not len(array):
        return np.zeros(0, np.uint64)
    lengths = pc.min_max(pc.binary_length(array)).as_py()
    if lengths["min"] == lengths["max"] == ID_DIGITS and not array.null_count:
        texts = np.frombuffer(array.buffers()[2], np.uint8)
        begin = int(np.frombuffer(array.buffers()[1], np.int32)[array.offset])
        words = texts[begin : begin + len(array) * ID_DIGITS].view(np.uint64).reshape(-1, 4)
        found = np.bitwise_xor.reduce(words * FACTORS, axis=1)  # modulo 2**64
    else:
        digests = (hashlib.sha256(str(one).encode()).digest()[:8] for one in array.to_pylist())
        found = np.array([int.from_bytes(one, "little") for one in digests], np.uint64)
    unique: Numbers = np.unique(found)
    return unique


def meet(one: Numbers, other: Numbers) -> bool:
    """Return whether two tables, of which these are the prints, share a cell."""
    few, many = sorted((one, other), key=len)
    if not len(few) or few[0] > many[-1] or many[0] > few[-1]:
        return False
    place = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return bool((many[place] == few).any())
