"""Checks a table against its pydantic model, and says what is wrong, where, and which word was probably meant."""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from stitchgrid.errors import nearest

M = TypeVar("M", bound=BaseModel)
SHOWN = 60  # characters of a bad value


class Problems:
    """A growing list of what is wrong with a job file."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, where: str, what: str) -> None:
        """Note one problem."""
        shown = where if where.isprintable() else repr(where)  # a key may hold line breaks
        self.found.append(f"{shown}: {what}" if shown else what)

    def check(self, model: type[M], table: Any, where: str, *, also_known: Sequence[str] = ()) -> M | None:
        """Return the table as its model, and note every problem.

        Keys with problems are left out of the model, so that the others can still be checked against other tables. None
        if no model can be made without them. `also_known` are further keys for the hint on an unknown key.
        """
        if not isinstance(table, Mapping):
            self.add(where, f"a table was expected, got {_shown(table)}")
            return None
        try:
            # By way of JSON: strict about types, but a TOML array may become a tuple.
            return model.model_validate_json(json.dumps(table, default=str), strict=True)
        except ValidationError as error:
            for detail in error.errors():
                self.add(*_in_words(detail, model, where, also_known))
            if not all(detail["loc"] for detail in error.errors()):  # a text that is not Unicode: no key can be read
                return None
            rest = _without(table, [detail["loc"] for detail in error.errors()])
        try:
            return model.model_validate_json(json.dumps(rest, default=str), strict=True)
        except ValidationError:
            return None


def _in_words(detail: ErrorDetails, model: type[BaseModel], where: str, also_known: Sequence[str]) -> tuple[str, str]:
    *parents, last = detail["loc"] or ("",)
    place = _join(where, detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _fields(model, parents)
        return place, f"unknown key; {nearest(str(last), [*known, *(also_known if not parents else ())])}"
    if detail["type"] == "missing":
        wanted = _field(model, detail["loc"]).description
        return place, f"missing, but needed{f': {wanted}' if wanted else ''}"
    if detail["type"] == "literal_error":
        names = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        return place, f"{_shown(detail['input'])} is unknown; {nearest(str(detail['input']), names)}"
    if detail["type"] == "value_error":
        return place, str(detail["ctx"]["error"])
    message = re.sub("^(Input|Tuple) | after validation", "", detail["msg"])
    return place, f"{message}, got {_shown(detail['input'])}"


def _join(where: str, loc: Sequence[str | int]) -> str:
    for part in loc:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else part
    return where


def _without(table: Mapping[str, Any], places: Iterable[Sequence[str | int]]) -> dict[str, Any]:
    """Return a copy of a table without the keys at these places; for a place in a list, the key of the list."""
    rest: dict[str, Any] = json.loads(json.dumps(table, default=str))
    for place in places:
        keys = [str(part) for part in itertools.takewhile(lambda part: isinstance(part, str), place)]
        here = rest
        for key in keys[:-1]:
            here = here.get(key, {})
        here.pop(keys[-1], None)
    return rest


def _fields(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Return the keys of the table at `loc` inside a model."""
    for part in loc:
        annotation = model.model_fields[str(part)].annotation
        model = next(kind for kind in (annotation, *get_args(annotation)) if _is_model(kind))
    return list(model.model_fields)


def _field(model: type[BaseModel], loc: Sequence[str | int]) -> FieldInfo:
    """Return the field at `loc` inside a model."""
    *parents, last = [part for part in loc if isinstance(part, str)]
    for part in parents:
        annotation = model.model_fields[part].annotation
        model = next(kind for kind in (annotation, *get_args(annotation)) if _is_model(kind))
    return model.model_fields[last]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
