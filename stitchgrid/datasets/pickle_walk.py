"""The instructions of a pickle, followed with stand-ins in place of what they would make.

Files of torch.save hold tensors of what lies in the file, and plain values. A pickle may ask for more without running
code: memory that is not in the file, and keys whose hashes take for ever. `torch.load` with `weights_only` allows both.
"""

import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any

LONGEST_KEY = 4096  # characters
MOST_ITEMS = 8  # of a tuple that is a key
SMALL = 2**20  # whole numbers up to here never collide in a dictionary
MOST_NUMBERS = 10_000  # that are keys, once one is not small; they may all collide
FREE_COPIES = 10_000  # items and characters
ENCODINGS = ("latin1", "latin-1")  # of bytes, as protocol 2 writes them
REBUILDS = frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor"})
PLAIN = frozenset(  # functions that make no more than their arguments hold
    {
        *("_codecs.encode", "builtins.complex", "builtins.set", "collections.Counter", "collections.OrderedDict"),
        *("torch.Size", "torch.device", "torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2"),
        *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"),
        *("torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_meta_tensor_no_storage"),
        *(f"torch._utils.{name}" for name in REBUILDS),
    }
)
IN_TORCH = re.compile(r"torch\.((cuda|sparse|cuda\.sparse|storage|_utils)\.)?\w+")  # where what it allows lies
EMPTY = ("torch.Tensor", "torch.nn.parameter.Parameter")  # with a number, they make so much memory; so do typed tensors


class RefusedPickleError(ValueError):
    """A pickle asks for what no state dict needs; the message says for what."""


@dataclass(frozen=True, slots=True)
class Name:
    """A function or type that a pickle names."""

    name: str


class Made:
    """What a call made."""


class Storage(Made):
    """Numbers of the file."""


class Foreign(Made):
    """What own code allowed torch to make."""


class _ForeignNameError(Exception):
    """A pickle names what torch does not allow, and stops at."""


@dataclass(slots=True)
class Dict:
    """The keys of a dictionary."""

    keys: list[Any] = field(default_factory=list)
    num_numbers: int = 0  # of its keys; one is counted as often as it is set
    may_collide: bool = False


class PickleWalk:
    """Follows pickles of one file; nothing is hashed, compared or called."""

    def __init__(self, most_tensors: int):
        self.most_tensors = most_tensors
        self.stored: set[str] = set()  # keys of storages
        self._of_storages = Dict()
        self._num_tensors = self._num_colliding = self._num_copied = 0

    def follow(self, file: IO[bytes]) -> Any:
        """Return what a pickle stands for; None where it ends early or uses what `torch.load` does not know.

        Raises:
            RefusedPickleError: If it asks for what no state dict needs.
            Exception: If its instructions do not fit each other: torch cannot follow them, either.
        """
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        instructions = pickletools.genops(file)
        while True:
            try:
                instruction, argument, position = next(instructions)
            except (ValueError, StopIteration):  # no pickle, or one that ends early: torch reads no further, either
                return None
            name = instruction.name
            if name == "STOP":
                return self._stack.pop()
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _ARGUMENTS:
                self._stack.append(argument)
            elif name in _STEPS:
                try:
                    _STEPS[name](self, argument)
                except _ForeignNameError:
                    return None
            elif name != "PROTO":
                return None
            if self._num_copied > FREE_COPIES + (position or 0):
                raise RefusedPickleError("copies what it holds again and again")

    def check_keys(self, keys: Iterable[Any], into: Dict | None = None) -> None:
        """Refuse keys of a dictionary that take long to hash or to compare, or may all collide; of storages by default.

        Raises:
            RefusedPickleError: If they do.
        """
        into = self._of_storages if into is None else into
        for key in keys:
            if isinstance(key, tuple):
                if len(key) > MOST_ITEMS or any(isinstance(item, tuple) for item in key):
                    raise RefusedPickleError("has a tuple of more than a few names as a key, which may take for ever")
                self.check_keys(key, into)
                self._count(into, may_collide=True)
            elif isinstance(key, str):
                if len(key) > LONGEST_KEY:
                    raise RefusedPickleError(
                        f"has a key of {len(key):,} characters; none has more than {LONGEST_KEY:,}"
                    )
            elif isinstance(key, int | float) and not isinstance(key, bool):
                self._count(into, may_collide=isinstance(key, float) or not 0 <= key < SMALL)
            elif not (key is None or isinstance(key, bool | Name)):
                raise RefusedPickleError("has keys that are neither texts nor numbers")

    def _count(self, into: Dict, *, may_collide: bool) -> None:
        into.num_numbers += 1
        into.may_collide |= may_collide
        self._num_colliding += may_collide
        if max(self._num_colliding, into.num_numbers if into.may_collide else 0) > MOST_NUMBERS:
            raise RefusedPickleError(f"has more than {MOST_NUMBERS:,} numbers as keys, which may take for ever to hash")

    def _pop_marked(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        else:
            module = IMPORT_MAPPING.get(module, module)
        if f"{module}.{name}".endswith("bytearray"):
            raise RefusedPickleError("makes a bytearray, which may take any amount of memory")
        self._stack.append(_named(f"{module}.{name}"))

    def _tuple(self, num_items: int | None) -> None:
        items = self._pop_marked() if num_items is None else [self._stack.pop() for _ in range(num_items)][::-1]
        self._stack.append(tuple(items))

    def _append(self, items: Iterable[Any]) -> None:
        if isinstance(self._stack[-1], list):  # else torch refuses it
            self._stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        if isinstance(target := self._stack[-1], Dict):  # else torch refuses it
            self.check_keys(items[::2], target)
            target.keys.extend(items[::2])

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _stored(self, _: Any) -> None:
        found = self._stack.pop()
        if isinstance(found, tuple):
            _, _, key, _, _, *view = found
            self.check_keys([key, *(one[0] for one in view if isinstance(one, tuple))])
            self.stored.add(str(key))
        self._stack.append(Storage())

    def _call(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._called(function, arguments))

    def _called(self, function: Any, arguments: Any) -> Any:
        """Return what stands for the result of a call."""
        if not isinstance(arguments, tuple):
            raise RefusedPickleError("calls something with what are no arguments")
        self._num_copied += sum(_length(argument) for argument in arguments)
        if isinstance(function, Foreign):
            return function
        name = function.name if isinstance(function, Name) else "what is no function"
        if name not in PLAIN:
            if len(arguments) or not (name in EMPTY or name.endswith("Tensor")):
                raise RefusedPickleError(f"calls {name}, which may take memory that the file does not have")
            return Made()
        if name == "_codecs.encode":
            if len(arguments) != len(("text", "encoding")) or arguments[1] not in ENCODINGS:
                raise RefusedPickleError("encodes a text by other than latin1, which may take for ever")
            return arguments[0]
        if name.startswith("collections.") or name == "builtins.set":
            return self._collected(name, arguments)
        if name.endswith("_rebuild_from_type_v2"):
            return self._called_for_type(*arguments)
        if name.endswith("_with_state"):
            self._check_state(arguments[3:])
        if name.rpartition(".")[2] in REBUILDS:
            self._num_tensors += 1
            if not isinstance(arguments[0], Storage):
                raise RefusedPickleError("makes a tensor of something else than numbers of the file")
            if self._num_tensors > self.most_tensors:
                raise RefusedPickleError(
                    f"makes more than {self.most_tensors:,} tensors; if it is sound, raise `tensors` under [limits]"
                )
        return Made()

    def _called_for_type(self, function: Any, _: Any, arguments: Any, *states: Any) -> Any:
        if not isinstance(function, Name) or not function.name.startswith("torch._utils."):
            raise RefusedPickleError("makes a tensor by something else than torch's functions")
        self._check_state(states)
        return self._called(function, arguments)

    def _collected(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Return the stand-in of a set, a counter or an ordered dictionary."""
        made, keys = Dict(), list[Any]()
        for items in arguments:
            if isinstance(items, Dict):
                keys += items.keys
            elif isinstance(items, list) and name != "collections.OrderedDict":
                keys += items
            elif isinstance(items, list) and all(isinstance(item, list | tuple) and item for item in items):
                keys += [item[0] for item in items]
            else:
                raise RefusedPickleError(f"makes a {name.rpartition('.')[2]} of what is no list")
        self.check_keys(keys, made)
        made.keys = keys
        return Made() if name == "builtins.set" else made

    def _build(self, _: Any) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Foreign):
            return
        if isinstance(target, Dict):
            self._check_state([state])
        elif isinstance(state, tuple) and state and not isinstance(state[0], Made):
            raise RefusedPickleError("sets a tensor to something else than numbers of the file")
        elif not isinstance(state, tuple):
            self._check_state([state])

    def _check_state(self, states: Iterable[Any]) -> None:
        """Refuse attributes by which an object would lose what its type has, such as `items` of a dictionary."""
        import torch

        for state in states:
            for one in state if isinstance(state, tuple) else (state,):
                if one is not None and not isinstance(one, Dict):
                    raise RefusedPickleError("has a state that is no dictionary")
                names = one.keys if one is not None else []
                self._num_copied += len(names)
                for name in names:
                    if not isinstance(name, str) or _is_method(OrderedDict, name) or _is_method(torch.Tensor, name):
                        raise RefusedPickleError("replaces what dictionaries or tensors do")


def _length(value: Any) -> int:
    if isinstance(value, Dict):
        return len(value.keys)
    return len(value) if isinstance(value, str | tuple | list) else 0


def _named(name: str) -> Name | Foreign:
    """Return what stands for what a pickle names."""
    from torch.serialization import get_safe_globals

    if name in PLAIN or name in EMPTY or IN_TORCH.fullmatch(name):
        return Name(name)
    if not get_safe_globals():
        raise _ForeignNameError
    return Foreign()


def _is_method(kind: type, name: str) -> bool:
    return callable(getattr(kind, name, None))


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": Dict,
    "EMPTY_SET": Made,
}
_ARGUMENTS = frozenset({"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"})
_STEPS: dict[str, Callable[[PickleWalk, Any], None]] = {
    "MARK": PickleWalk._mark,
    "GLOBAL": PickleWalk._global,
    "TUPLE": lambda walk, _: walk._tuple(None),
    "TUPLE1": lambda walk, _: walk._tuple(1),
    "TUPLE2": lambda walk, _: walk._tuple(2),
    "TUPLE3": lambda walk, _: walk._tuple(3),
    "APPEND": lambda walk, _: walk._append([walk._stack.pop()]),
    "APPENDS": lambda walk, _: walk._append(walk._pop_marked()),
    "SETITEM": PickleWalk._set_item,
    "SETITEMS": lambda walk, _: walk._set_items(walk._pop_marked()),
    "BINPERSID": PickleWalk._stored,
    "REDUCE": PickleWalk._call,
    "NEWOBJ": PickleWalk._call,
    "BUILD": PickleWalk._build,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda walk, place: walk._stack.append(walk._memo[place])),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda walk, place: walk._memo.update({place: walk._stack[-1]})),
}
