"""The instructions of a pickle, followed with stand-ins in place of what they would make.

Files of torch.save hold tensors of what lies in the file, and plain values. A pickle may ask for more without running
code: memory that is not in the file, and keys whose hashes take for ever. `torch.load` with `weights_only` allows both.
"""

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable
from typing import IO, Any

from stitchgrid.datasets.pickle_calls import Calls, ForeignNameError, named
from stitchgrid.datasets.pickle_values import Dict, ForeignMade, Made, RefusedPickleError

MOST_INSTRUCTIONS = 10_000_000  # of which one may make 100 bytes; a tensor takes about 30
FREE_INSTRUCTIONS = 1_000_000  # beside one a byte of the file, which may be a packed archive
LONGEST_NAME = 500  # characters; torch's message about a name that it does not know takes their square
FREE_COPIES = 10_000  # items and characters


class StoppedPickleError(Exception):
    """A pickle uses an instruction or a name that `torch.load` does not know."""


class PickleWalk:
    """Follows pickles of one file; nothing is hashed, compared or called."""

    def __init__(self, most_tensors: int, num_bytes: int):
        self.calls = Calls(most_tensors)
        self._num_bytes = num_bytes  # of the file
        self._most_instructions = max(MOST_INSTRUCTIONS, 100 * most_tensors)
        self._num_instructions = 0

    def follow(self, file: IO[bytes]) -> Any:
        """Return what a pickle stands for.

        Raises:
            RefusedPickleError: If it asks for what no state dict needs.
            StoppedPickleError: If it uses what torch does not know; torch stops there, too.
            Exception: If it ends early, or its instructions do not fit each other: torch cannot follow them, either.
        """
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self.calls.begin()
        instructions = pickletools.genops(file)
        while True:
            try:
                instruction, argument, position = next(instructions)
            except MemoryError:
                raise ValueError("a text is longer than the file") from None
            name = instruction.name
            if name == "STOP":
                return self._stack.pop()
            self._follow(name, argument)
            self._num_instructions += 1
            if self._num_instructions > FREE_INSTRUCTIONS + self._num_bytes:
                raise RefusedPickleError(f"has {self._num_bytes:,} bytes, and more than a million values more")
            if self._num_instructions > self._most_instructions:
                raise RefusedPickleError(
                    f"has more than {self._most_instructions:,} values; if it is sound, raise `tensors` under [limits]"
                )
            if self.calls.num_copied > FREE_COPIES + (position or 0):
                raise RefusedPickleError("copies what it holds again and again")

    def _follow(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _ARGUMENTS:
            self._stack.append(argument)
        elif name in _STEPS:
            try:
                _STEPS[name](self, argument)
            except ForeignNameError as problem:
                raise StoppedPickleError from problem
        elif name != "PROTO":
            raise StoppedPickleError

    def _pop_marked(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _global(self, argument: str) -> None:
        if len(argument) > LONGEST_NAME:
            raise RefusedPickleError(f"names something by {len(argument):,} characters")
        module, _, name = argument.partition(" ")
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        else:
            module = IMPORT_MAPPING.get(module, module)
        self._stack.append(named(f"{module}.{name}"))

    def _tuple(self, num_items: int | None) -> None:
        items = self._pop_marked() if num_items is None else [self._stack.pop() for _ in range(num_items)][::-1]
        self._stack.append(tuple(items))

    def _append(self, items: Iterable[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, ForeignMade):
            raise RefusedPickleError("appends to what is no list")

    def _set_items(self, items: list[Any]) -> None:
        target = Dict() if isinstance(self._stack[-1], ForeignMade) else self._stack[-1]
        if not isinstance(target, Dict):  # torch before 2.10 would write into a tensor
            raise RefusedPickleError("sets items of what is no dictionary")
        self.calls.key_check.check(items[::2], target)
        target.keys.extend(items[::2])

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _refer(self, _: Any) -> None:
        self._stack.append(self.calls.refer(self._stack.pop()))

    def _call(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self.calls.call(function, arguments))

    def _build(self, _: Any) -> None:
        state = self._stack.pop()
        self.calls.build(self._stack[-1], state)


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
    "BINPERSID": PickleWalk._refer,
    "REDUCE": PickleWalk._call,
    "NEWOBJ": PickleWalk._call,
    "BUILD": PickleWalk._build,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda walk, place: walk._stack.append(walk._memo[place])),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda walk, place: walk._memo.update({place: walk._stack[-1]})),
}
