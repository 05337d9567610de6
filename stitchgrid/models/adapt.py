"""Adapt a network that takes more than images, or returns more than class scores, so that images give scores alone.

The network's class is replaced by one derived from it whose `forward` takes images and returns class scores. Its
modules, their names and the names in its state dict stay those of the user's network.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from stitchgrid.errors import InputError, nearest
from stitchgrid.records import ORDINARY, Interface

NUM_NAMED = 4  # further arguments, in errors
NUM_SHOWN = 12  # things that a network returns, in errors
_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}


def adapt(
    module: nn.Module,
    interface: Interface = ORDINARY,
    *,
    casts_to: torch.dtype | None = None,
    is_column: bool = False,
    averaged: tuple[int, ...] = (),
) -> nn.Module:
    """Let a network be called with images alone and return the scores alone; return the same network.

    Args:
        module: The user's network. The effect of an earlier call is undone.
        interface: Constants for further arguments, and which of the network's outputs holds the scores.
        casts_to: The type to which images are cast, where the network's own forward does not take float32.
        is_column: Whether the network returns one score per image as (N,), which becomes (N, 1).
        averaged: Axes of positions, over which its scores are averaged.

    Raises:
        InputError: If the network's forward does not take these arguments, or needs others.
    """
    own = author_class(module)
    module.__class__ = own
    images, constants = _arguments(module, interface)
    output, base = _output(module, interface), own.forward
    if not constants and output is None and casts_to is None and not is_column and not averaged and images is None:
        return module
    repeated, picked = _repeated, _picked

    def forward(self: nn.Module, x: Tensor) -> Any:
        """Return the class scores of images."""
        x = x if casts_to is None else x.to(casts_to)
        further = {name: repeated(x, value) for name, value in constants.items()}
        made = base(self, x, **further) if images is None else base(self, **{images: x}, **further)
        scores = made if output is None else picked(made, output)
        scores = scores.mean(averaged) if averaged else scores
        return scores.reshape(-1, 1) if is_column else scores

    # torch.fx wraps functions that it must not look into in the globals of the forward that it traces
    home = getattr(inspect.unwrap(base), "__globals__", globals())
    traced = FunctionType(forward.__code__, home, "forward", forward.__defaults__, forward.__closure__)
    kind = type(own.__name__, (own,), {"forward": traced, "_of_author": own, "_given": tuple(constants)})
    kind.__module__, kind.__qualname__ = own.__module__, own.__qualname__
    module.__class__ = kind
    return module


def _output(module: nn.Module, interface: Interface) -> str | int | tuple[str, ...] | None:
    """Return which output of a network holds the scores: the one that the job names, else its library's default.

    Of several names, the first that the network returns counts.
    """
    said: tuple[str, ...] | None = getattr(module, "default_output", None)
    return said if interface.output is None else interface.output


def author_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a network as its author wrote it."""
    kind: type[nn.Module] = getattr(type(module), "_of_author", type(module))
    return kind


def _arguments(module: nn.Module, interface: Interface) -> tuple[str | None, dict[str, Any]]:
    """Return the argument that takes the images, None for the first one, and the constants for the others."""
    constants: dict[str, Any] = json.loads(interface.inputs)
    name = type(module).__name__
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # built in C
        return None, constants
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY, p.POSITIONAL_ONLY)]
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if unknown := [word for word in constants if word not in {p.name for p in named} and not is_open]:
        raise InputError(
            f"{name}'s forward has no argument {unknown[0]!r}, which the model's `inputs` gives; "
            f"{nearest(unknown[0], [p.name for p in named])}."
        )
    free = [p for p in named if p.name not in constants]
    if constants and not free and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise InputError(f"{name}'s forward has no argument left for the images; leave one out of `inputs`.")
    if missing := [p.name for p in free[1:] if p.default is p.empty]:
        line = ", ".join(f"{word} = [0, 0]" for word in missing)
        raise InputError(
            f"{name}'s forward also needs {', '.join(map(repr, missing))}; give constants for all but the images in "
            f"the model's table, such as inputs = {{ {line} }}: a list becomes a float tensor, repeated for each "
            'image; { value = [0], dtype = "int64" } makes a tensor of another type; a number, bool or string is '
            "passed as it is."
        )
    is_first = not free or not named or free[0] is named[0]
    return None if is_first else free[0].name, constants


def further_arguments(module: nn.Module) -> tuple[list[str], list[str]]:
    """Return names of arguments of a network's own forward after the first: those with a constant, and a few others."""
    given: tuple[str, ...] = getattr(type(module), "_given", ())
    try:
        parameters = list(inspect.signature(author_class(module).forward).parameters.values())[2:]
    except (TypeError, ValueError):  # built in C
        return list(given), []
    others = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return list(given), [name for name in others if name not in given][:NUM_NAMED]


def _repeated(images: Any, value: Any) -> Any:
    """Return a constant for each image of a batch; as one operation where the network is traced."""
    if not isinstance(value, list | dict):
        return value
    if isinstance(images, fx.Proxy):
        return images.tracer.create_proxy("call_function", repeat_for, (images, json.dumps(value)), {})
    return repeat_for(images, json.dumps(value))


def repeat_for(images: Tensor, value: str) -> Tensor:
    """Return the tensor that a constant of a job file stands for, repeated along a first axis of images.

    >>> repeat_for(torch.zeros(2, 3), "[0, 1.5]")
    tensor([[0.0000, 1.5000],
            [0.0000, 1.5000]])
    """
    tensor = _constant(value, images.device)
    return tensor.expand(len(images), *tensor.shape).clone()


@lru_cache(maxsize=256)  # else the host would wait for the device at each batch
def _constant(value: str, device: torch.device) -> Tensor:
    given = json.loads(value)
    wanted = given.get("dtype", "float32") if isinstance(given, dict) else "float32"
    if wanted not in _DTYPES:
        raise InputError(f"dtype {wanted!r} in `inputs` is unknown; {nearest(str(wanted), _DTYPES)}.")
    try:
        return torch.tensor(given["value"] if isinstance(given, dict) else given, dtype=_DTYPES[wanted]).to(device)
    except (TypeError, ValueError, KeyError, RuntimeError) as problem:
        raise InputError(
            f"{value} in `inputs` is no tensor ({type(problem).__name__}: {problem}); wanted numbers in lists of equal "
            'lengths, or { value = [...], dtype = "int64" }.'
        ) from problem


def _picked(made: Any, output: str | int | tuple[str, ...]) -> Any:
    """Return one output of a network, named by key, attribute or position; dots separate the parts of a path.

    Raises:
        InputError: If there is no such output.
    """
    if isinstance(output, tuple):
        there = [value for word in output if (value := _or_none(made, word)) is not None]
        return there[0] if there else made
    try:
        return _item(made, output)
    except (KeyError, IndexError, AttributeError, TypeError):
        pass
    value = made
    for part in str(output).split("."):
        try:
            value = _item(value, int(part) if part.lstrip("-").isdigit() else part)
        except (KeyError, IndexError, AttributeError, TypeError) as problem:
            raise InputError(f"there is no output {output!r}: the network returns {described(made)}.") from problem
    return value


def _or_none(made: Any, word: str) -> Any:
    try:
        return _item(made, word)
    except (KeyError, AttributeError, TypeError):
        return None


def _item(made: Any, word: str | int) -> Any:
    if isinstance(made, Tensor | fx.Proxy):
        raise TypeError(word)
    if isinstance(word, int) or isinstance(made, Mapping):
        return made[word]
    return getattr(made, word)


def parts_of(made: Any) -> dict[str | int, Any]:
    """Return the outputs of a network by key, field name or position; an empty dict for a single output."""
    if isinstance(made, Mapping):
        return {key: value for key, value in made.items() if isinstance(key, str | int)}
    fields = getattr(made, "_fields", None)
    if isinstance(made, list | tuple):
        return dict(zip(fields or range(len(made)), made, strict=True))
    if hasattr(made, "__dataclass_fields__"):
        return {name: getattr(made, name) for name in made.__dataclass_fields__}
    return {}


def described(made: Any) -> str:
    """Return in words what a network returned.

    >>> described({"logits": torch.zeros(2, 10), "n": 3})
    "a dict: 'logits' (2, 10), 'n' (int)"
    """
    if isinstance(made, Tensor):
        return f"a tensor of {tuple(made.shape)}"
    shown = [
        f"{key!r} {tuple(value.shape) if isinstance(value, Tensor) else f'({type(value).__name__})'}"
        for key, value in parts_of(made).items()
    ]
    more = ", ..." if len(shown) > NUM_SHOWN else ""
    listed = f": {', '.join(shown[:NUM_SHOWN])}{more}" if shown else ""
    return f"a {type(made).__name__}{listed}"


def output_line(made: Any, num_images: int) -> str | None:
    """Return the line of a job file that names the class scores among a network's outputs, None where none does."""

    def is_scores(value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() in {1, 2} and len(value) == num_images

    found = next((key for key, value in parts_of(made).items() if is_scores(value)), None)
    return None if found is None else f"output = {json.dumps(found)}"


def runs(call: Callable[[], Any]) -> bool:
    """Return whether a call ends without an error."""
    try:
        call()
    except (Exception, SystemExit):  # a network may refuse its input with any exception
        return False
    return True
