"""Stand-ins for what a pickle makes, and the kinds of arguments that torch.save writes."""

from dataclasses import dataclass, field
from typing import Any

ITEM_BYTES = {  # of one number, by the name of its storage
    **dict.fromkeys(("Untyped", "Bool", "Byte", "Char", "QInt8", "QUInt8", "QUInt2x4", "QUInt4x2"), 1),
    **dict.fromkeys(("BFloat16", "Half", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("ComplexFloat", "Double", "Long"), 8),
    "ComplexDouble": 16,
}
ENCODINGS = ("latin1", "latin-1")  # of bytes, as protocol 2 writes them; others may take for ever
MOST_DIMS = 64  # of a tensor
_LONGEST_WORD = 100  # characters of a device or layout


class RefusedPickleError(ValueError):
    """A pickle asks for what no state dict needs; the message says for what."""


@dataclass(frozen=True, slots=True)
class Name:
    """A function or type that a pickle names."""

    name: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """A function or type that the user's code allowed torch to call."""

    name: str


@dataclass(slots=True)
class Dict:
    """The keys of a dictionary."""

    keys: list[Any] = field(default_factory=list)
    num_numbers: int = 0  # of its keys; one is counted as often as it is set
    may_collide: bool = False


class Made:
    """What a call made."""


class ForeignMade(Made):
    """What a call of the user's code made."""


class TensorLayout(Made):
    """The layout of a tensor."""


@dataclass(frozen=True, eq=False, slots=True)
class Storage(Made):
    """Numbers of the file."""

    num_bytes: int
    item_bytes: int


@dataclass(eq=False, slots=True)
class Rebuilt(Made):
    """A tensor."""

    num_elements: int = 0
    is_expanded: bool = False  # has more elements than its storage has numbers


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 0."""
    return isinstance(value, int) and value >= 0


def is_size(value: Any) -> bool:
    """Return whether a value is a tuple of counts, as sizes and strides are."""
    return isinstance(value, tuple) and len(value) <= MOST_DIMS and all(map(is_count, value))


def is_number(value: Any) -> bool:
    """Return whether a value is a number."""
    return isinstance(value, int | float)


def is_text(value: Any) -> bool:
    """Return whether a value is a text, or bytes before they are encoded."""
    return isinstance(value, str)


def is_word(value: Any) -> bool:
    """Return whether a value is a short text."""
    return isinstance(value, str) and len(value) <= _LONGEST_WORD


def is_encoding(value: Any) -> bool:
    """Return whether a value is the encoding of bytes."""
    return value in ENCODINGS if isinstance(value, str) else False


def is_name(value: Any) -> bool:
    """Return whether a value is a type or function of torch's."""
    return isinstance(value, Name)


def is_type(value: Any) -> bool:
    """Return whether a value is a type or function, of torch's or the user's."""
    return isinstance(value, Name | Foreign)


def is_rebuilding(value: Any) -> bool:
    """Return whether a value is a function of torch's that makes a tensor."""
    return isinstance(value, Name) and value.name.startswith("torch._utils._rebuild_")


def is_tuple(value: Any) -> bool:
    """Return whether a value is a tuple."""
    return isinstance(value, tuple)


def is_list(value: Any) -> bool:
    """Return whether a value is a list."""
    return isinstance(value, list)


def is_dict(value: Any) -> bool:
    """Return whether a value is a dictionary."""
    return isinstance(value, Dict)


def are_pairs(value: Any) -> bool:
    """Return whether a value is a dictionary, or a list of pairs."""
    return isinstance(value, Dict) or (
        isinstance(value, list) and all(isinstance(item, list | tuple) and len(item) == 2 for item in value)
    )


def is_flag(value: Any) -> bool:
    """Return whether a value is true or false."""
    return isinstance(value, bool)


def are_hooks(value: Any) -> bool:
    """Return whether a value is the empty dictionary of hooks that tensors are saved with."""
    return value is None or (isinstance(value, Dict) and not value.keys)


def is_metadata(value: Any) -> bool:
    """Return whether a value is a dictionary or nothing."""
    return value is None or isinstance(value, Dict)


def is_state(value: Any) -> bool:
    """Return whether a value is a dictionary, nothing, or a pair of these: attributes and slots."""
    return is_metadata(value) or (isinstance(value, tuple) and len(value) == 2 and all(map(is_metadata, value)))


def is_layout(value: Any) -> bool:
    """Return whether a value is a layout."""
    return isinstance(value, TensorLayout)


def is_storage(value: Any) -> bool:
    """Return whether a value stands for numbers of the file."""
    return isinstance(value, Storage)


def is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor."""
    return isinstance(value, Rebuilt)


def is_dense(value: Any) -> bool:
    """Return whether a value is a tensor with no more elements than its storage has."""
    return isinstance(value, Rebuilt) and not value.is_expanded


def are_sparse(value: Any) -> bool:
    """Return whether a value has indices and values, then a size, and perhaps whether it is coalesced."""
    return isinstance(value, tuple) and all(
        is_dense(item) if number < 2 else is_dense(item) or is_size(item) or isinstance(item, bool | None)
        for number, item in enumerate(value)
    )


def is_quantizer(value: Any) -> bool:
    """Return whether a value is a scheme with its scales and zero points."""
    return isinstance(value, tuple) and all(
        isinstance(item, Name) or is_number(item) or is_dense(item) or (is_list(item) and all(map(is_number, item)))
        for item in value
    )
