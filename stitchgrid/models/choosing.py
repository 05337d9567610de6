"""The reading of a checkpoint that a network takes: the only one that fits, or the one that the job names."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stitchgrid.errors import InputError, nearest
from stitchgrid.models.readings import CheckpointReading, Outline, completed, find_readings, find_sets, of_equal_values
from stitchgrid.printable import first_few

_NUM_SHOWN = 4


def choose_tensors(
    content: Any, module: nn.Module, path: Path, *, word: str, key: str | None = None, strip: str | None = None
) -> dict[str, Tensor]:
    """Return the tensors for a network in what a checkpoint holds, by the network's names.

    Args:
        content: What the file holds.
        module: The network.
        path: The file.
        word: The file as the job names it.
        key: Where in the file the tensors are; None: it is searched for.
        strip: The prefix of their names that is removed; None: it is searched for.

    Raises:
        InputError: If no reading fits, or several that differ in values do; the error says what to write.
    """
    outline = Outline(module)
    readings = find_readings(content, outline, key=key, strip=strip)
    if not readings:
        raise InputError(_nothing(content, path, key, strip))
    whole = [reading for reading in find_readings(content, outline, key=None, strip=None) if reading.fits]
    partly = [done for one in readings if not one.fits and (done := completed(one, whole, outline)) is not None]
    chosen: list[CheckpointReading] = []
    for reading in [*(one for one in readings if one.fits), *partly]:
        if not any(of_equal_values(reading, other, outline) for other in chosen):
            chosen.append(reading)
    if len(chosen) > 1:
        lines = "".join(f"\n    {_to_write(word, one, chosen)}" for one in chosen)
        raise InputError(
            f"checkpoint {path} holds {len(chosen)} sets of weights that fit {outline.kind} and differ in values, such "
            f"as raw and averaged ones; say which:{lines}"
        )
    if not chosen:
        raise InputError(_misfit(readings, outline, path, None if key is not None or strip is not None else word))
    return chosen[0].tensors


def misfit_words(reading: CheckpointReading) -> str:
    """Return what is wrong with a reading."""
    kinds = {
        "missing": reading.missing,
        "unexpected": reading.unexpected,
        "of another shape": reading.misshapen,
    }
    return "; ".join(f"{len(names)} {what}: {first_few(names, _NUM_SHOWN)}" for what, names in kinds.items() if names)


def _nothing(content: Any, path: Path, key: str | None, strip: str | None) -> str:
    known = [where for where, _ in find_sets(content)]
    if not known:
        if isinstance(content, dict):
            held = "entries " + ", ".join(map(repr, list(content)[:_NUM_SHOWN])) if content else "nothing"
        else:
            held = f"a {type(content).__name__}"
        return f"{path} holds {held}; wanted a state dict (tensors by name), or one under a key such as 'state_dict'."
    if key is not None and not any(where == key or where.endswith(f".{key}") for where in known):
        return f"{path} has no tensors under the key {key!r}; {nearest(key, known)}."
    return f"{path} has no tensor whose name begins with {strip!r}; leave `strip` out to have it found."


def _misfit(readings: Sequence[CheckpointReading], outline: Outline, path: Path, word: str | None) -> str:
    best, *others = readings
    said = (
        f"checkpoint {path} belongs to another architecture than {outline.kind}: of {len(outline.shapes)} tensors "
        f"{misfit_words(best)}{_how(best)}. Check `architecture` and `args`."
    )
    more = {name.partition(".")[0] for name in best.unexpected} - outline.modules
    if more and word is not None and not best.missing and not best.misshapen:
        without = first_few(sorted(more), _NUM_SHOWN)
        said += f" To load it without {without}, which the network does not have: {_to_write(word, best)}"
    near = [f"{_how(one) or ' as it is'} ({one.num_wrong} names wrong)" for one in others[:2] if one.tensors]
    return f"{said} Also read{', and'.join(near)}." if near else said


def _how(reading: CheckpointReading) -> str:
    key = f" under the key {reading.key!r}" if reading.key else ""
    return key + (f" without {reading.strip!r}" if reading.strip else "")


def _to_write(word: str, reading: CheckpointReading, others: Sequence[CheckpointReading] = ()) -> str:
    """Return the line of a job file that selects this reading among others."""
    keys = [one.key for one in others]
    is_by_key = not others or keys.count(reading.key) == 1
    words = [f"key = {json.dumps(reading.key)}"] if reading.key or is_by_key else []
    words += [] if is_by_key and others else [f"strip = {json.dumps(reading.strip)}"]
    return f"weights = {{ {', '.join([f'file = {json.dumps(word)}', *words])} }}"
