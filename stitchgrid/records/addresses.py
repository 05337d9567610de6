"""Digests by which content is addressed."""

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces, the form in which things are hashed and stored.

    >>> canonical({"b": 1, "a": [1, 2]})
    '{"a":[1,2],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(*parts: str | bytes) -> str:
    """Return 32 hex digits of the SHA-256 over the parts, each preceded by its length.

    >>> digest("ab", "c") == digest("a", "bc")
    False
    """
    return hashlib.sha256(framed(*parts)).hexdigest()[:32]


def framed(*parts: str | bytes) -> bytes:
    """Return the parts one after the other, each preceded by its length.

    >>> framed("ab", "c") == framed("ab") + framed("c")
    True
    """
    raw = [part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(8, "little") + part for part in raw)
