"""Vision networks of transformers: from a folder as `save_pretrained` writes it, or from the Hugging Face hub by name.

Only configurations and safetensors are read, never pickles. No code of a folder or repository runs, and the user is
never asked to allow it; a configuration that names paths is refused.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stitchgrid.errors import InputError, JobFileError, is_out_of_memory, nearest, one_line
from stitchgrid.json_files import read_json
from stitchgrid.models.foreign_config import PROCESSORS, check_config, check_files, check_sides, limited
from stitchgrid.preprocess import apply_preprocess
from stitchgrid.printable import first_few
from stitchgrid.records import DEFAULT_LIMITS, HUGGINGFACE, Limits, Preprocess, canonical, digest

# The first of these that exists holds the scores.
OUTPUTS = ("logits", "image_embeds", "pooler_output", "last_hidden_state")
_CONFIG = "config.json"
_NUM_SHOWN = 4  # tensors in a message
_WANTED = "the configuration of a network"
_SMALL = 100_000_000  # bytes; a network of less does no harm
_NO_SAY = {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}  # keys that do not change what is computed
_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
_TOLERANCE = 0.05  # mean difference of preprocessed images: rounding to 8 bits after resizing, or not, makes 0.02


def huggingface_function(name: str, base: str, limits: Limits = DEFAULT_LIMITS) -> Callable[..., nn.Module]:
    """Return the function that makes the network of a folder, relative to `base`, or of a name of the hub.

    A network of more or larger tensors than `limits` allow of a checkpoint is not made.

    Raises:
        JobFileError: If transformers is not installed.
        InputError: If there is no such folder or name.
    """
    if importlib.util.find_spec("transformers") is None:
        raise JobFileError(
            f"architecture '{HUGGINGFACE}:{name}' needs transformers, which is not installed; "
            "pip install stitchgrid[huggingface]."
        )
    return partial(_make, where_of(name, base), limits)


def where_of(name: str, base: str) -> str:
    """Return the folder with a configuration that a word names, else the word itself, as a name of the hub.

    Raises:
        InputError: If it is a folder without a configuration, or cannot be a name of the hub.
    """
    folder = Path(base, name).expanduser()
    if (folder / _CONFIG).is_file():
        return str(folder)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(
            f"architecture '{HUGGINGFACE}:{name}': {folder} is no folder with a {_CONFIG}, as save_pretrained of "
            "transformers writes it."
        )
    return name


def huggingface_digest(name: str, base: str) -> str:
    """Return a digest of the configuration, the same in a folder and on the hub.

    Raises:
        InputError: If it cannot be read.
    """
    config = {key: value for key, value in _config_dict(where_of(name, base)).items() if key not in _NO_SAY}
    return digest(HUGGINGFACE, canonical(config))


def huggingface_preprocess(name: str, base: str) -> Preprocess:
    """Return the size and normalisation of the image processor that is published with the weights.

    The result is compared with the output of the processor itself on an image.

    Raises:
        JobFileError: If there is no image processor, or it does something that a `preprocess` cannot express.
    """
    where = where_of(name, base)
    _config_dict(where)  # checked, since transformers reads it where the image processor has no file of its own
    if _is_folder(where):
        check_files(Path(where))
        for file in (path for name in PROCESSORS if (path := Path(where, name)).exists()):
            check_config(read_json(file, "the configuration of an image processor"), str(file))
    try:
        with _quiet():
            processor = _transformers().AutoImageProcessor.from_pretrained(
                where, local_files_only=_is_folder(where), trust_remote_code=False
            )
    except Exception as problem:
        raise JobFileError(
            f"{HUGGINGFACE}:{name} has no image processor that can be read ({one_line(problem)}); give the model a "
            "`preprocess`."
        ) from problem
    try:
        check_sides(config := processor.to_dict())
        found = [(_difference(processor, reading), k, reading) for k, reading in enumerate(_readings(config))]
    except (ValueError, TypeError, AttributeError, ArithmeticError) as problem:
        raise JobFileError(
            f"the image processor of {HUGGINGFACE}:{name} has a setting that cannot be followed ({one_line(problem)}); "
            "give the model a `preprocess`."
        ) from problem
    difference, _, best = min(found)
    if difference < _TOLERANCE:
        return best
    raise JobFileError(
        f"the image processor of {HUGGINGFACE}:{name} ({type(processor).__name__}) does something that a "
        "`preprocess` cannot express; give the model a `preprocess`."
    )


def _make(where: str, limits: Limits, /, *, pretrained: bool = False, **args: Any) -> nn.Module:
    """Return the network, with its weights from safetensors, or as transformers initialises it."""
    if _is_folder(where):
        check_files(Path(where))
    kind, config = _kind_and_config(where, args)
    most = limits.checkpoint_bytes
    if pretrained and _is_folder(where):
        held = sum(path.stat().st_size for path in Path(where).glob("*.safetensors"))
        most = min(most, max(_SMALL, limits.unpacking * held))
    with _quiet(), limited(where, limits.tensors, most):
        module: nn.Module = _load(kind, config, where) if pretrained else kind(config)
    module.default_output = OUTPUTS  # type: ignore[assignment]
    return module


def _kind_and_config(where: str, args: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the class of a network and its configuration, changed by `args`; `class` among them names the class."""
    given = dict(args)
    kind = _class(where, given.pop("class", None))
    with _read(where):
        config, unknown = kind.config_class.from_pretrained(
            where,
            return_unused_kwargs=True,
            local_files_only=_is_folder(where),
            **{**given, "trust_remote_code": False},
        )
    whole = _config_dict(where)
    if "vision_config" in whole and "projection_dim" in whole and "projection_dim" not in given:
        config.projection_dim = whole["projection_dim"]  # of both parts of a CLIP
    if word := next(iter(set(unknown) & set(given)), None):
        raise ValueError(f"{type(config).__name__} has no {word!r}; {nearest(word, config.to_dict())}")
    return kind, config


def _class(where: str, named: str | None) -> Any:
    """Return the class that `class` names, else the configuration's own, of its image part where it has several."""
    transformers = _transformers()
    config = _config_dict(where)
    own = list(config.get("architectures") or [])
    if named is None and not own:
        raise ValueError('its configuration names no class; give one, such as args = { class = "ViTModel" }')
    words = [named] if named else [word for name in own for word in (name, *_image_parts(name))]
    for word in words:
        kind = getattr(transformers, word, None)
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.main_input_name == "pixel_values":  # type: ignore[attr-defined]
            return kind
    said = f"class {named!r}" if named else f"its class {own[0]!r}"
    raise ValueError(f"{said} is no network of transformers that takes pixel_values alone; name another as `class`")


def _image_parts(name: str) -> list[str]:
    stem = name.removesuffix("Model")
    return [f"{stem}VisionModelWithProjection", f"{stem}VisionModel"]


def _load(kind: Any, config: Any, where: str) -> nn.Module:
    """Return the network with all of its weights; a pooler that the file lacks is left out.

    Raises:
        InputError: If other weights are missing or of another shape, or cannot be read.
    """
    load = partial(
        kind.from_pretrained,
        where,
        config=config,
        use_safetensors=True,
        local_files_only=_is_folder(where),
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # the error below names them
        dtype=torch.float32,
    )
    with _read(where):
        module, info = load()
        if info["missing_keys"] and all(".pooler." in f".{key}" for key in info["missing_keys"]):
            with contextlib.suppress(TypeError):  # a class that always has a pooler takes no such argument
                module, info = load(add_pooling_layer=False)
    wrong = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    if wrong:
        raise InputError(
            f"the weights of {where} lack {len(wrong)} of the tensors of {kind.__name__}, or have them in other "
            f"shapes: {first_few(wrong, _NUM_SHOWN)}; name the class that was saved as args = {{ class = ... }}, or "
            'weights = "random".'
        )
    found: nn.Module = module
    return found


def _transformers() -> Any:
    return importlib.import_module("transformers")


def _config_dict(where: str) -> dict[str, Any]:
    found = read_json(Path(where, _CONFIG), _WANTED) if _is_folder(where) else dict(_of_hub(where))
    check_config(found, str(Path(where, _CONFIG)) if _is_folder(where) else f"the {_CONFIG} of {HUGGINGFACE}:{where}")
    return found


@lru_cache(maxsize=64)
def _of_hub(name: str) -> dict[str, Any]:
    with _read(name):
        found, _ = _transformers().PretrainedConfig.get_config_dict(name)
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def _read(where: str) -> Iterator[None]:
    """Turn exceptions while reading within the block into an error that says where, and what to do."""
    try:
        with _quiet():
            yield
    except (InputError, JobFileError, KeyboardInterrupt):
        raise
    except Exception as problem:  # transformers and its hub raise errors of many types
        if is_out_of_memory(problem):
            raise
        if _is_folder(where):
            raise InputError(f"{where} cannot be read by transformers ({one_line(problem)}).") from problem
        raise InputError(
            f"{HUGGINGFACE}:{where} cannot be read from the Hugging Face hub ({one_line(problem)}); fill its cache "
            "where there is a network, or name a folder that save_pretrained wrote."
        ) from problem


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within a block, let transformers print and ask nothing: its problems become errors.

    Where it would ask whether to run code of a folder or repository, it fails instead.
    """
    logging, remote_code = _transformers().utils.logging, _transformers().dynamic_module_utils
    seconds = remote_code.TIME_OUT_REMOTE_CODE  # how long it waits for an answer; 0: it does not ask
    level, shows = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    remote_code.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        remote_code.TIME_OUT_REMOTE_CODE = seconds
        logging.set_verbosity(level)
        if shows:
            logging.enable_progress_bar()


def _is_folder(where: str) -> bool:
    return os.path.isdir(where)  # noqa: PTH112  # of a word that may be no path


def _readings(config: Mapping[str, Any]) -> Iterator[Preprocess]:
    """Yield the possible meanings of an image processor's configuration: its classes read one key in different ways."""
    is_resized, is_cropped = config.get("do_resize"), config.get("do_center_crop")
    size, crop = _sides(config.get("size")), _sides(config.get("crop_size"))
    is_scaled = config.get("do_normalize")
    mean, std = (_numbers(config.get(key)) if is_scaled else None for key in ("image_mean", "image_std"))
    share = config.get("crop_pct")

    if is_scaled and std is not None and config.get("include_top"):
        std = tuple(value**2 for value in std)  # EfficientNet's divides once more

    def made(resize: Any, crop: Any) -> Preprocess:
        interpolation = _INTERPOLATIONS.get(int(config.get("resample") or 0), "bilinear")
        return Preprocess(resize=resize, crop=crop, mean=mean, std=std, interpolation=interpolation)

    yield made(size if is_resized else None, crop if is_cropped else None)
    if is_resized and isinstance(size, int):
        if share:
            yield made(int(size / share), size)  # ConvNext's
            yield made(int(size / share), crop)  # PoolFormer's
        yield made((size, size), None)
        yield made(int(256 / 224 * size), crop if is_cropped else None)  # LeViT's


def _sides(size: Any) -> int | tuple[int, int] | None:
    if isinstance(size, int) or size is None:
        return size
    if (short := size.get("shortest_edge")) is not None:
        return int(short)
    height, width = size.get("height"), size.get("width")
    return None if height is None or width is None else (int(height), int(width))


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))


def _difference(processor: Any, reading: Preprocess) -> float:
    """Return the mean difference of an image preprocessed by a reading and by the processor; inf if sizes differ."""
    # Smooth: a shift by half a pixel changes little.
    columns, rows = torch.linspace(0, 3, 360), torch.linspace(0, 3, 300)[:, None]
    waves = [torch.sin(rows * (1 + k / 2) + columns * (1 - k / 2)) for k in range(3)]
    pixels = ((torch.stack(waves) + 1) * 127).to(torch.uint8)
    try:
        made: Tensor = processor(pixels.numpy(), return_tensors="pt")["pixel_values"][0]
        own = apply_preprocess([pixels], reading)[0]
    except Exception:  # it takes something else, or the crop is larger than the image
        return float("inf")
    return float((made.float() - own).abs().mean()) if made.shape == own.shape else float("inf")
