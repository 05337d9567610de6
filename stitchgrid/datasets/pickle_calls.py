"""Calls in a pickle: the functions that files of torch.save call, with arguments of the kinds that it writes.

Every other call is refused. Sizes and strides are compared with the numbers that the file holds before torch allocates
anything for them: `set_`, of which torch makes tensors, enlarges a storage that is too short.
"""

import builtins
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from stitchgrid.datasets import pickle_values as kinds
from stitchgrid.datasets.pickle_keys import KeyCheck
from stitchgrid.datasets.pickle_values import (
    ITEM_BYTES,
    Dict,
    Foreign,
    ForeignMade,
    Made,
    Name,
    Rebuilt,
    RefusedPickleError,
    Storage,
    TensorLayout,
)

MOST_SCANS = 16  # numbers that torch reads of indices, values and scales, for each byte of the storages
FREE_SCANS = 1_000_000  # numbers
_STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage")
_IN_TORCH = re.compile(r"torch\.((cuda|sparse|cuda\.sparse|storage|_utils)\.)?\w+")  # where what it allows lies
_OF_TORCH = re.compile(r"traceback\.|torch\.(nested|distributed|_dynamo)\.")  # what torch adds to the user's list


class ForeignNameError(Exception):
    """A pickle names what torch does not allow, and stops at."""


class Calls:
    """The calls of the pickles of one file, of which none is made."""

    def __init__(self, most_tensors: int):
        self.key_check = KeyCheck()
        self.num_copied = 0  # items and characters that calls copy
        self._most_tensors = most_tensors
        self._num_made: Counter[str] = Counter()
        self._num_scanned = self._num_stored = 0  # numbers, and bytes of storages
        self.begin()

    def begin(self) -> None:
        """Forget the storages of the pickle before; each has its own."""
        self.stored: dict[str, int] = {}  # key of each storage -> its bytes
        self._storages: dict[str, Storage] = {}  # and views of storages

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what stands for the result of a call.

        Raises:
            RefusedPickleError: If torch.save never writes it.
        """
        if not isinstance(arguments, tuple):
            raise RefusedPickleError("calls something with what are no arguments")
        self.num_copied += sum(_length(argument) for argument in arguments)
        if isinstance(function, Foreign):
            return ForeignMade()
        name = function.name if isinstance(function, Name) else "what is no function"
        if name not in CALLS:
            if arguments or not name.endswith("Tensor"):  # with a number, it makes so much memory
                raise RefusedPickleError(f"calls {name}, which may take memory that the file does not have")
            self._count(name)
            return Rebuilt()
        make, *wanted = CALLS[name]
        if len(arguments) > len(wanted) or not all(
            fits(argument) for fits, argument in zip(wanted, arguments, strict=False)
        ):
            raise RefusedPickleError(f"calls {name} with what torch.save never writes")
        made = make(self, *arguments)
        if isinstance(made, Rebuilt):
            self._count(name)
        return made

    def refer(self, reference: Any) -> Storage:
        """Return what stands for a storage; its first reference says how long it is, as for torch.

        Raises:
            RefusedPickleError: If it is not one that torch.save writes.
        """
        _, kind, key, _, length, *views = reference if isinstance(reference, tuple) else ()
        found = _STORAGE.fullmatch(kind.name) if isinstance(kind, Name) else None
        if not found or found[1] not in ITEM_BYTES:
            raise RefusedPickleError("has numbers of no type")
        storage, is_new = self._stored(key, length, item_bytes := ITEM_BYTES[found[1]])
        if is_new:
            self.stored[key] = storage.num_bytes
            self._num_stored += storage.num_bytes
        for view in views:
            if view is None:
                continue
            if not isinstance(view, tuple):
                raise RefusedPickleError("has a part of numbers that is no part")
            key, start, length = view
            if not (kinds.is_size((start, length)) and (start + length) * item_bytes <= storage.num_bytes):
                raise RefusedPickleError("has a part of numbers that are not in the file")
            storage, _ = self._stored(key, length, item_bytes)
        self._count("storage")
        return storage

    def build(self, target: Any, state: Any) -> None:
        """Check what is set of an object after it was made.

        Raises:
            RefusedPickleError: If torch.save never writes it.
        """
        if isinstance(target, ForeignMade):
            if isinstance(state, list):  # may become attributes, by pairs whose names are hashed
                self.key_check.check((item[0] for item in state if isinstance(item, list | tuple) and item), Dict())
        elif isinstance(target, Dict) and kinds.is_state(state):
            self._check_state(state)
        elif isinstance(target, Rebuilt) and isinstance(state, tuple):
            self._build_tensor(target, state)
        else:
            raise RefusedPickleError("has a state that is no dictionary")

    def _build_tensor(self, target: Rebuilt, state: tuple[Any, ...]) -> None:
        """Check the state of a tensor or parameter as torch before 0.4 wrote it."""
        made = target
        if _fit(state, _TENSOR):
            made = self._tensor(*state)
        elif _fit(state, (kinds.is_tensor, kinds.is_metadata, kinds.are_hooks, kinds.is_flag, kinds.is_flag)):
            made = state[0]
        elif not _fit(state, (kinds.is_flag, kinds.is_flag, kinds.are_hooks)):
            raise RefusedPickleError("sets a tensor to something else than numbers of the file")
        target.num_elements = max(target.num_elements, made.num_elements)
        target.is_expanded |= made.is_expanded

    def _count(self, kind: str) -> None:
        self._num_made[kind] += 1
        if self._num_made[kind] > self._most_tensors:
            raise RefusedPickleError(
                f"makes more than {self._most_tensors:,} tensors; if it is sound, raise `tensors` under [limits]"
            )

    def _scan(self, num_elements: int) -> None:
        self._num_scanned += num_elements
        if self._num_scanned > FREE_SCANS + MOST_SCANS * self._num_stored:
            raise RefusedPickleError("reads the same numbers again and again")

    def _stored(self, key: Any, length: Any, item_bytes: int) -> tuple[Storage, bool]:
        """Return a storage, and whether it is new."""
        if not isinstance(key, str) or not kinds.is_count(length):
            raise RefusedPickleError("has numbers of no key or count")
        is_new = key not in self._storages
        return self._storages.setdefault(key, Storage(length * item_bytes, item_bytes)), is_new

    def _same(self, value: Any, *_: Any) -> Any:
        return value

    def _plain(self, *_: Any) -> Made:
        return Made()

    def _layout(self, _: Any) -> TensorLayout:
        return TensorLayout()

    def _set(self, items: Any) -> Made:
        self._dict(items)
        return Made()

    def _ordered_dict(self, items: Any = ()) -> Dict:
        return self._dict([item[0] for item in items] if isinstance(items, list) else items)

    def _dict(self, items: Any = ()) -> Dict:
        keys = list(items.keys if isinstance(items, Dict) else items)
        made = Dict()
        self.key_check.check(keys, made)
        made.keys = keys
        return made

    def _tensor(
        self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *flags: Any
    ) -> Rebuilt:
        item_bytes = next((_item_bytes(flag) for flag in flags if isinstance(flag, Name)), storage.item_bytes)
        steps = zip(size, stride, strict=True)
        reach = 0 if 0 in size else offset + 1 + sum((count - 1) * step for count, step in steps)
        if reach * item_bytes > storage.num_bytes:
            raise RefusedPickleError("makes a tensor of more numbers than its storage has")
        num_elements = math.prod(size)
        return Rebuilt(num_elements, num_elements * item_bytes > storage.num_bytes)

    def _quantized(
        self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], quantizer: Any, *_: Any
    ) -> Rebuilt:
        made = self._tensor(storage, offset, size, stride)
        if made.is_expanded:  # torch allocates its elements before it takes the storage
            raise RefusedPickleError("makes a tensor of more numbers than its storage has")
        for item in quantizer:
            self._scan(item.num_elements if isinstance(item, Rebuilt) else 0)
            self.num_copied += len(item) if isinstance(item, list) else 0
        return made

    def _parameter(self, data: Rebuilt | None = None, *flags: Any) -> Rebuilt:
        for state in flags[2:]:
            self._check_state(state)
        return data or Rebuilt()

    def _sparse(self, _: Any, data: tuple[Any, ...]) -> Rebuilt:
        self._scan(sum(item.num_elements for item in data if isinstance(item, Rebuilt)))
        return Rebuilt()

    def _meta(self, *_: Any) -> Rebuilt:
        return Rebuilt()

    def _subclassed(self, function: Name, _: Any, arguments: Any, state: Any) -> Any:
        self._check_state(state)
        return self.call(function, arguments)

    def _check_state(self, state: Any) -> None:
        """Refuse attributes that are more than values: those that the type of the object has, such as `items`."""
        import torch

        for one in state if isinstance(state, tuple) else (state,):
            names = one.keys if isinstance(one, Dict) else []
            self.num_copied += len(names)
            for name in names:
                if not isinstance(name, str) or hasattr(OrderedDict, name) or hasattr(torch.Tensor, name):
                    raise RefusedPickleError("replaces what dictionaries or tensors do")


def named(name: str) -> Name | Foreign:
    """Return what stands for what a pickle names.

    Raises:
        ForeignNameError: If torch does not allow it.
        RefusedPickleError: If torch allows it, and it is no part of any file of torch.save's.
    """
    from torch.serialization import get_safe_globals

    if name.endswith("bytearray"):
        raise RefusedPickleError("makes a bytearray, which may take any amount of memory")
    if name in CALLS or _IN_TORCH.fullmatch(name):
        return Name(name)
    allowed = {
        one[1] if isinstance(one, tuple) else f"{one.__module__}.{one.__qualname__}" for one in get_safe_globals()
    }
    if name not in allowed:
        raise ForeignNameError
    if _OF_TORCH.match(name) or _is_exception(name):
        raise RefusedPickleError(f"names {name}, which is no part of a state dict")
    return Foreign(name)


def _is_exception(name: str) -> bool:
    module, _, kind = name.partition(".")
    found = getattr(builtins, kind, None) if module == "builtins" else None
    return isinstance(found, type) and issubclass(found, BaseException)


def _item_bytes(dtype: Name) -> int:
    import torch

    found = getattr(torch, dtype.name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise RefusedPickleError("makes a tensor of no type")
    return found.itemsize


def _fit(values: tuple[Any, ...], wanted: tuple[Callable[[Any], bool], ...]) -> bool:
    return len(values) == len(wanted) and all(fits(value) for fits, value in zip(wanted, values, strict=True))


def _length(value: Any) -> int:
    if isinstance(value, Dict):
        return len(value.keys)
    return len(value) if isinstance(value, str | tuple | list) else 0


_TENSOR = (kinds.is_storage, kinds.is_count, kinds.is_size, kinds.is_size)
_FLAGS = (kinds.is_flag, kinds.are_hooks)
#: What stands for the result of a function, and the kinds of its arguments, of which the last may be missing.
CALLS: dict[str, tuple[Callable[..., Any], *tuple[Callable[[Any], bool], ...]]] = {
    "_codecs.encode": (Calls._same, kinds.is_text, kinds.is_encoding),
    "builtins.complex": (Calls._plain, kinds.is_number, kinds.is_number),
    "builtins.set": (Calls._set, kinds.is_list),
    "collections.Counter": (Calls._dict, kinds.is_dict),
    "collections.OrderedDict": (Calls._ordered_dict, kinds.are_pairs),
    "torch.Size": (Calls._same, kinds.is_size),
    "torch.device": (Calls._plain, kinds.is_word, kinds.is_count),
    "torch.serialization._get_layout": (Calls._layout, kinds.is_word),
    "torch.nn.parameter.Parameter": (Calls._parameter, kinds.is_tensor, kinds.is_flag),
    "torch._tensor._rebuild_from_type_v2": (
        Calls._subclassed,
        kinds.is_rebuilding,
        kinds.is_type,
        kinds.is_tuple,
        kinds.is_state,
    ),
    "torch._utils._rebuild_tensor": (Calls._tensor, *_TENSOR),
    "torch._utils._rebuild_tensor_v2": (Calls._tensor, *_TENSOR, *_FLAGS, kinds.is_metadata),
    "torch._utils._rebuild_tensor_v3": (Calls._tensor, *_TENSOR, *_FLAGS, kinds.is_name, kinds.is_metadata),
    "torch._utils._rebuild_qtensor": (Calls._quantized, *_TENSOR, kinds.is_quantizer, *_FLAGS),
    "torch._utils._rebuild_parameter": (Calls._parameter, kinds.is_tensor, *_FLAGS),
    "torch._utils._rebuild_parameter_with_state": (Calls._parameter, kinds.is_tensor, *_FLAGS, kinds.is_state),
    "torch._utils._rebuild_sparse_tensor": (Calls._sparse, kinds.is_layout, kinds.are_sparse),
    "torch._utils._rebuild_meta_tensor_no_storage": (
        Calls._meta,
        kinds.is_name,
        kinds.is_size,
        kinds.is_size,
        kinds.is_flag,
    ),
}
