"""Open the images of a `DataSpec`: list the splits, permute them, decode the drawn images, cache them."""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from stitchgrid.cache import default_cache
from stitchgrid.datasets.cache import PIXELS, ImageCache
from stitchgrid.datasets.classes import arranged, check_labels
from stitchgrid.datasets.decoding import expect_large_images
from stitchgrid.datasets.drawing import Draw, draw_images
from stitchgrid.datasets.image_files import start_no_programs
from stitchgrid.datasets.images import ImagePool, Images, Listing, Origin
from stitchgrid.datasets.notices import notices
from stitchgrid.datasets.ranges import check_measured
from stitchgrid.datasets.registry import DATASETS, known_datasets, needs_root, own_parts
from stitchgrid.datasets.sources import Source, Unlabelled
from stitchgrid.datasets.torchvision_sets import TorchvisionSource
from stitchgrid.datasets.user_dataset import OwnSource
from stitchgrid.errors import InputError, nearest
from stitchgrid.limits import raise_by
from stitchgrid.live_networks import LIVE, live_images
from stitchgrid.printable import first_few, is_text, printable
from stitchgrid.records import DEFAULT_LIMITS, DataSpec, canonical, digest

REVISION = "3"  # of the rules of listing, drawing and decoding; part of a cache key
SHOWN = 5  # names of bad images in a message


def open_images(spec: DataSpec, *, cache: Path | None = None, need_fit: int | None = None, wish_fit: int = 0) -> Images:
    """Return the images of a sweep.

    Args:
        spec: Which images.
        cache: Folder for decoded images; default $STITCHGRID_CACHE, else the user's cache folder.
        need_fit: The largest number of fit images that any matcher or training needs; None: all. If it is 0, the fit
            split need not exist.
        wish_fit: So many fit images are taken if there are as many, else all.

    Raises:
        InputError: If a root, split or image is missing or cannot be read, the two splits have no class in common, the
            classes or the range of pixels differ from the job's, or there are fewer images than samples.
    """
    if spec.dataset == LIVE:
        live: Images = live_images()
        return live
    expect_large_images(spec.limits)
    start_no_programs()
    draws = _draws(spec, need_fit, wish_fit)
    source = _source(spec, [draw.split for draw in draws])
    pools = _fetch(source, draws, spec, ImageCache(cache or default_cache()), need_fit)
    check_measured(bounds for pool in pools.values() for bounds in pool.measured)
    drawn = pools[spec.eval_split]
    if spec.fit_split == spec.eval_split:
        num_eval = len(drawn.labels) if spec.eval_samples is None else spec.eval_samples
        fit, evaluation = drawn.split(num_eval), drawn.split(0, num_eval)
        num_fit_listed = drawn.listing.num - num_eval
    else:
        fit_pool = pools.get(spec.fit_split)
        fit, evaluation = fit_pool.split(0) if fit_pool else drawn.split(0, 0), drawn.split(0)
        num_fit_listed = fit_pool.listing.num if fit_pool else 0
    check_labels(pools)
    class_names, new_labels = arranged(drawn.listing, spec)
    return Images(
        fit=fit.relabelled(new_labels),
        eval=evaluation.relabelled(new_labels),
        class_names=class_names,
        num_bad=sum(pool.num_bad for pool in pools.values()),
        num_fit_listed=num_fit_listed,
        notices=notices(pools),
        origins=_origins(spec, source, pools, num_fit_listed=num_fit_listed, num_eval=evaluation.num),
    )


def _origins(
    spec: DataSpec, source: Source, pools: Mapping[str, ImagePool], *, num_fit_listed: int, num_eval: int
) -> tuple[Origin, Origin]:
    """Return where fit and evaluation images come from."""
    num = pools[spec.eval_split].listing.num
    evaluation = Origin(split=spec.eval_split, num=num, num_before=0, names=partial(source.names, spec.eval_split))
    if spec.fit_split == spec.eval_split:
        return replace(evaluation, num_before=num_eval), evaluation
    names = partial(source.names, spec.fit_split)
    return Origin(split=spec.fit_split, num=num_fit_listed, num_before=0, names=names), evaluation


def _draws(spec: DataSpec, need_fit: int | None, wish_fit: int) -> list[Draw]:
    if spec.fit_split != spec.eval_split:
        evaluation = Draw(split=spec.eval_split, num=spec.eval_samples)
        return [evaluation] if need_fit == 0 else [evaluation, Draw(split=spec.fit_split, num=need_fit, wish=wish_fit)]
    if spec.eval_samples is None and need_fit != 0:
        raise InputError(
            f"fit and eval are both split {spec.eval_split!r}, and eval takes all of it; give eval `samples` (in "
            "Python `samples`, or `fit`), so that some images are left to fit on."
        )
    if spec.eval_samples is None or need_fit is None:
        return [Draw(split=spec.eval_split, num=None)]
    num_eval = spec.eval_samples
    return [Draw(split=spec.eval_split, num=num_eval + need_fit, wish=num_eval + wish_fit if need_fit else 0)]


def _source(spec: DataSpec, splits: Sequence[str]) -> Source:
    if own_parts(spec.dataset) is not None:
        return OwnSource(spec, splits)
    if spec.dataset not in known_datasets():
        raise InputError(f"no data set {spec.dataset!r}; {nearest(spec.dataset, known_datasets())}.")
    known, root = DATASETS.get(spec.dataset), None if spec.root is None else Path(spec.root)
    if root is None and needs_root(spec.dataset):
        raise InputError(f"data set {spec.dataset!r} needs a root: set `root` under [data] to where its images are.")
    if known is None:
        assert root is not None
        found = TorchvisionSource(spec.dataset, root, splits, download=spec.download, bounds=spec.range)
        return found if spec.has_labels else Unlabelled(found)
    how: dict[str, Any] = {
        "bounds": spec.range,
        "named": spec.classes,
        "limits": spec.limits,
        "has_labels": spec.has_labels,
    }
    if known.takes_keys:
        how["keys"] = json.loads(spec.keys)
    if known.takes_channels:
        how |= {"channels": spec.channels, "axes": spec.axes}
    if known.takes_folder:
        how["folder"] = None if spec.folder is None else Path(spec.folder)
    source: Source = known.load()(root, splits, **how)
    return source


def _fetch(
    source: Source, draws: Sequence[Draw], spec: DataSpec, cache: ImageCache, need_fit: int | None
) -> dict[str, ImagePool]:
    """Return split -> drawn images, from the cache if they are in it."""
    signature = source.signature()
    if signature is None:
        _check(spec, need_fit, {draw.split: source.listing(draw.split) for draw in draws})
        return _decode(source, draws, spec, [io.BytesIO() for _ in draws])
    keys = {draw: _key(signature, draw, spec) for draw in draws}
    pools = {draw.split: pool for draw in draws if (pool := cache.load(keys[draw]))}
    if len(pools) < len(draws):
        with cache.lock(signature):  # another process may be decoding the same images just now
            pools = {draw.split: pool for draw in draws if (pool := cache.load(keys[draw]))}
            missing = [draw for draw in draws if draw.split not in pools]
            _check(spec, need_fit, {draw.split: source.listing(draw.split) for draw in draws})
            pools |= _decode_into_cache(source, missing, spec, cache, keys)
    _check(spec, need_fit, {split: pool.listing for split, pool in pools.items()})
    return pools


def _key(signature: str, draw: Draw, spec: DataSpec) -> str:
    raised = [] if spec.limits == DEFAULT_LIMITS else [astuple(spec.limits)]  # another image may be unreadable
    how = canonical([spec.range, sorted(spec.classes or ()), *raised])
    return digest(REVISION, signature, draw.split, str(draw.most), str(spec.seed), spec.on_bad_image, how)


def _check(spec: DataSpec, need_fit: int | None, listings: Mapping[str, Listing]) -> None:
    """Refuse more samples than there are images, and splits with different classes."""
    eval_listing, fit_listing = listings[spec.eval_split], listings.get(spec.fit_split)
    _check_text(spec, eval_listing.class_names)
    if (spec.eval_samples or 0) > eval_listing.num:
        raise InputError(_too_many("eval", spec.eval_samples, spec.eval_split, eval_listing.num))
    if fit_listing is None:
        return
    shared = (spec.eval_samples or 0) if spec.fit_split == spec.eval_split else 0
    if need_fit != 0 and max(need_fit or 0, spec.fit_samples or 0) > fit_listing.num - shared:
        asked = max(need_fit or 0, spec.fit_samples or 0)
        raise InputError(_too_many("fit", asked, spec.fit_split, fit_listing.num, shared))
    if eval_listing.class_names != fit_listing.class_names:
        fit_classes, eval_classes = set(fit_listing.class_names), set(eval_listing.class_names)
        raise InputError(
            f"splits {spec.fit_split!r} and {spec.eval_split!r} have different classes: only in {spec.fit_split!r}: "
            f"{_some(fit_classes - eval_classes)}; only in {spec.eval_split!r}: {_some(eval_classes - fit_classes)}. "
            "A label must mean the same in both."
        )
    _check_common(spec, eval_listing, fit_listing)


def _check_text(spec: DataSpec, class_names: Sequence[str]) -> None:
    if no_text := [name for name in class_names if not is_text(name)]:
        raise InputError(
            f"the name of a class is no text in UTF-8: {printable(no_text[0][:60])!r}; give it, such as the folder of "
            "its images, another name."
        )
    if too_long := [name for name in class_names if len(name) > spec.limits.text]:
        raise InputError(
            f"the name of a class has {len(too_long[0]):,} characters, more than the {spec.limits.text:,} allowed: "
            f"{too_long[0][:60]!r}...; {raise_by('text')}."
        )


def _check_common(spec: DataSpec, eval_listing: Listing, fit_listing: Listing) -> None:
    """Refuse splits that may have different names for the same classes, unless the job names all classes."""
    if spec.classes is not None:
        return
    fit_classes, eval_classes = (set(one.class_names) - set(one.absent) for one in (fit_listing, eval_listing))
    spelt = {_plain(name): name for name in fit_classes - eval_classes}
    twice = sorted((spelt[_plain(name)], name) for name in eval_classes - fit_classes if _plain(name) in spelt)
    if twice or (fit_classes and eval_classes and fit_classes.isdisjoint(eval_classes)):
        what = f"such as {twice[0][0]!r} and {twice[0][1]!r}" if twice else "none in common"
        raise InputError(
            f"splits {spec.fit_split!r} and {spec.eval_split!r} have different classes, {what}: only in "
            f"{spec.fit_split!r}: {_some(fit_classes - eval_classes)}; only in {spec.eval_split!r}: "
            f"{_some(eval_classes - fit_classes)}. A label must mean the same in both; if these are classes of their "
            "own, name all of them in `classes` under [data]."
        )


def _plain(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum())


def _too_many(role: str, asked: int | None, split: str, num: int, taken: int = 0) -> str:
    left = f", of which eval takes {taken} first and {num - taken} are left" if taken else ""
    return f"{role} asks for {asked} samples, but split {split!r} has {num} images{left}; lower `samples`."


def _some(names: set[str]) -> str:
    return first_few(sorted(names), SHOWN) or "none"


def _decode_into_cache(
    source: Source,
    draws: Sequence[Draw],
    spec: DataSpec,
    cache: ImageCache,
    keys: Mapping[Draw, str],
) -> dict[str, ImagePool]:
    try:
        with ExitStack() as stack:
            drafts = [stack.enter_context(cache.draft()) for _ in draws]
            with ExitStack() as open_files:
                files = [open_files.enter_context((draft / PIXELS).open("w+b")) for draft in drafts]
                pools = _decode(source, draws, spec, files)
            for draft, draw in zip(drafts, draws, strict=True):
                pools[draw.split] = cache.publish(draft, keys[draw], pools[draw.split])
            return pools
    except OSError:  # the cache cannot be written, or its disk is full
        return _decode(source, draws, spec, [io.BytesIO() for _ in draws])


def _decode(source: Source, draws: Sequence[Draw], spec: DataSpec, sinks: Sequence[BinaryIO]) -> dict[str, ImagePool]:
    return draw_images(source, draws, sinks, seed=spec.seed, skip_bad=spec.on_bad_image == "skip", bounds=spec.range)
