"""Low-rank adapters (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024) as PEFT writes them, merged into their network."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from stitchgrid.errors import InputError, nearest
from stitchgrid.json_files import read_json
from stitchgrid.models.sharded import ADAPTER

_TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B)(\.default)?\.weight")
# save_pretrained writes the plain name; the state_dict of a network of PEFT has the endings.
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_(?P<part>magnitude_vector)(\.default)?(\.weight)?")
_NAMES = re.compile(r"(?:[A-Za-z0-9_.|-]|\\\.)+")  # regular expressions that are plain names, with | between them
_Rank = Annotated[int, Field(ge=1, le=10**6, strict=True)]
_Alpha = Annotated[float, Field(ge=-1e9, le=1e9)]
# Settings that change what is computed.
_UNKNOWN = ("use_qalora", "lora_bias", "arrow_config", "monteclora_config")


class _Config(BaseModel):
    """The entries of an adapter's configuration that are used."""

    model_config = ConfigDict(allow_inf_nan=False)

    r: _Rank
    lora_alpha: _Alpha
    use_rslora: bool | None = False
    use_dora: bool | None = False
    fan_in_fan_out: bool | None = False
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _are_names(cls, found: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        if odd := next((word for word in found or {} if not _NAMES.fullmatch(word)), None):
            raise ValueError(f"{odd[:80]!r} is no name of a layer; regular expressions are not followed")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adapter:
    folder: Path
    config: _Config

    def rank(self, module: str) -> float:
        """Return the rank that the configuration gives the adapter of a layer."""
        return _of_pattern(self.config.rank_pattern, module, self.config.r)

    def scale(self, module: str) -> float:
        """Return the factor of the product of the two matrices: alpha / rank, or alpha / sqrt(rank)."""
        rank = self.rank(module)
        alpha = _of_pattern(self.config.alpha_pattern, module, self.config.lora_alpha)
        return alpha / (rank**0.5 if self.config.use_rslora else rank)


def _of_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """Return the value of the first key that is a layer's name, or its end after a dot; `|` separates names."""
    for names, value in (patterns or {}).items():
        if any(f".{module}".endswith(f".{name}") for name in names.replace("\\.", ".").split("|")):
            return value
    return default


def merge_adapter(module: nn.Module, folder: Path, load: Callable[[Path], dict[str, Tensor]]) -> None:
    """Add an adapter to the weights of its network: W + scale * B A for each pair; other tensors replace the old ones.

    With DoRA, each output feature of that sum is then scaled to the length that the adapter's magnitudes give it.

    Args:
        module: The network with the weights that the adapter was trained on.
        folder: With adapter_config.json and adapter_model.safetensors.
        load: Reads a file of safetensors.

    Raises:
        InputError: If the folder holds no adapter of this kind, or the adapter does not fit the network.
    """
    adapter = _Adapter(folder=folder, config=_config(folder))
    path = folder / _TENSORS
    if not path.is_file():
        raise InputError(f"{folder} has no {_TENSORS}; save the adapter with save_pretrained of PEFT, as safetensors.")
    pairs: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for full, value in load(path).items():
        name = full.removeprefix(_PREFIX)
        if found := _PARTS.fullmatch(name) or _MAGNITUDE.fullmatch(name):
            place, key = pairs.setdefault(found["module"], {}), found["part"]
        else:
            place, key = others, name.replace(".modules_to_save.default.", ".")
        if key in place:
            raise InputError(f"{path} holds {full} under another name as well; which of the two is meant is not known.")
        place[key] = value
    if unknown := [name for name in others if ".lora_" in name]:
        raise InputError(f"{path} holds {unknown[0]}, a kind of adapter that is not merged here; {_MERGE}.")
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    with torch.no_grad():
        for name, parts in pairs.items():
            weight = _weight(state, f"{name}.weight", path)
            weight.copy_(_merged(weight, parts, adapter, name))
        for name, value in others.items():
            _weight(state, name, path, tuple(value.shape)).copy_(value)


_MERGE = "merge it where it was trained (merge_and_unload of PEFT) and give the checkpoint of that"


def _config(folder: Path) -> _Config:
    config = read_json(folder / ADAPTER, "the configuration of an adapter as PEFT saves one")
    if (kind := config.get("peft_type")) != "LORA":
        raise InputError(f"{folder} is an adapter of the kind {str(kind)[:80]!r}; wanted LORA; {_MERGE}.")
    if changed := next((key for key in _UNKNOWN if config.get(key)), None):
        raise InputError(f"{folder} is a LoRA with {changed}, which is not merged here; {_MERGE}.")
    try:
        return _Config.model_validate(config)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        raise InputError(
            f"the {ADAPTER} of {folder} is not that of a LoRA with a rank `r` and `lora_alpha`: {where}: "
            f"{first['msg']}; {_MERGE}."
        ) from problem


def _weight(state: Mapping[str, Tensor], name: str, path: Path, shape: tuple[int, ...] | None = None) -> Tensor:
    if name not in state:
        raise InputError(f"{path} adapts {name}, which the network does not have; {nearest(name, state)}.")
    if shape is not None and tuple(state[name].shape) != shape:
        raise InputError(f"{path} has {name} {shape} where the network has {tuple(state[name].shape)}.")
    return state[name]


def _merged(weight: Tensor, parts: Mapping[str, Tensor], adapter: _Adapter, name: str) -> Tensor:
    """Return W + scale * B A in float32; of a convolution (O,I,h,w), A is (r,I,h,w) and B (O,r,1,1)."""
    halves = [part for part in "AB" if part in parts]
    if len(halves) == 1:
        raise InputError(f"{adapter.folder} has only one half of the adapter of {name}: lora_{halves[0]}.")
    if not halves:
        raise InputError(f"{adapter.folder} has magnitudes for {name}, and no adapter of it; {_MERGE}.")
    a, b = (parts[part].float().flatten(1) for part in "AB")
    is_turned = bool(adapter.config.fan_in_fan_out)
    rows = weight.T if is_turned else weight
    if (len(b), b.shape[1], a.shape[1]) != (len(rows), len(a), rows[0].numel()):
        raise InputError(
            f"{adapter.folder} adapts {name} by matrices of {tuple(b.shape)} and {tuple(a.shape)}, which do not give "
            f"its weight {tuple(weight.shape)}."
        )
    if len(a) != adapter.rank(name):
        raise InputError(
            f"the {ADAPTER} of {adapter.folder} gives {name} the rank {adapter.rank(name)}, and its matrices have "
            f"{len(a)}, so the scale of the adapter is not known; take both from one save_pretrained of PEFT."
        )
    merged = rows.float() + (b @ a).view(rows.shape) * adapter.scale(name)
    merged = _with_magnitudes(merged, parts.get("magnitude_vector"), adapter, name)
    return merged.T if is_turned else merged


def _with_magnitudes(rows: Tensor, magnitudes: Tensor | None, adapter: _Adapter, name: str) -> Tensor:
    """Return m * V / ||V|| for each output feature (row) V; without DoRA, the rows as they are.

    Source: Liu et al. 2024 (arXiv 2402.09353), eq. 5, whose columns are these rows. The magnitudes m of a convolution
    are (1,O,1,1), as PEFT has them.
    """
    if bool(adapter.config.use_dora) != (magnitudes is not None):
        said = "use_dora" if magnitudes is None else "no use_dora"
        held = "no" if magnitudes is None else "a"
        raise InputError(
            f"the {ADAPTER} of {adapter.folder} says {said}, and there is {held} lora_magnitude_vector of {name}; take "
            "both from one save_pretrained of PEFT."
        )
    if magnitudes is None:
        return rows
    if magnitudes.shape not in {(len(rows),), (1, len(rows), *[1] * (rows.dim() - 2))}:
        raise InputError(
            f"{adapter.folder} has magnitudes of {tuple(magnitudes.shape)} for {name}, which has {len(rows)} output "
            "features."
        )
    flat = rows.flatten(1)
    lengths = flat.norm(dim=1)
    if not bool(lengths.all()):
        raise InputError(
            f"{adapter.folder} scales the output features of {name}, and feature {int(lengths.argmin())} is 0, which "
            f"has no direction; {_MERGE}."
        )
    scaled: Tensor = flat * (magnitudes.float().view(-1) / lengths)[:, None]
    return scaled.view(rows.shape)
