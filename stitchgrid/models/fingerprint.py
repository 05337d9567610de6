"""Fingerprints: what a network computes from a few images. They show changes that weights and code do not show.

A constant that code reads from a file, an environment variable, or a library's new version can change what a network
computes, but changes neither its weights nor its code. A store keeps the first fingerprint of every network.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from stitchgrid.errors import InputError
from stitchgrid.models.cuts import CutNetwork
from stitchgrid.records import Fingerprint, TensorSummary, canonical, digest

NUM_IMAGES = 8  # of noise, and as many of the evaluation images
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 3e-2}  # relative; for networks that compute in such a type
DEFAULT_TOLERANCE = 1e-3
DIGITS = 9  # of the numbers kept
KIND = "fingerprint"  # of artefact


class FingerprintStore(Protocol):
    """Where fingerprints are kept."""

    def has_artefact(self, kind: str, key: str) -> bool:
        """Return whether an artefact is there."""
        ...

    def read_artefact(self, kind: str, key: str) -> bytes:
        """Return the content of an artefact."""
        ...


def noise_input(input_shape: Sequence[int]) -> Tensor:
    """Return images of noise in [-2, 2), always the same: float32 (NUM_IMAGES, C, H, W)."""
    noise: Tensor = torch.rand((NUM_IMAGES, *input_shape), generator=torch.Generator().manual_seed(2)) * 4 - 2
    return noise


@torch.no_grad()
def take_fingerprint(
    network: CutNetwork, nodes: Sequence[str], images: Tensor, *, device: torch.device | None = None
) -> tuple[Fingerprint, Tensor]:
    """Return a network's fingerprint, and the scores of noise and then of the images: (2 * NUM_IMAGES, K).

    Args:
        network: The network.
        nodes: The selected cuts.
        images: The first evaluation images as the network takes them.
        device: Where the network is; the CPU by default.
    """
    seen = [_look(network, nodes, some, device) for some in (noise_input(network.input_shape), images)]
    content = hashlib.sha256(images.cpu().contiguous().numpy().tobytes()).hexdigest()[:32]
    found = Fingerprint(input_shape=network.input_shape, noise=seen[0][0], images=seen[1][0], images_digest=content)
    return found, torch.cat([scores for _, scores in seen])


@torch.no_grad()
def fingerprint_of_noise(network: CutNetwork, nodes: Sequence[str], *, device: torch.device) -> Fingerprint:
    """Return the fingerprint of noise alone, without images: the cheapest part of it."""
    noise, _ = _look(network, nodes, noise_input(network.input_shape), device)
    return Fingerprint(input_shape=network.input_shape, noise=noise)


def _look(
    network: CutNetwork, nodes: Sequence[str], images: Tensor, device: torch.device | None
) -> tuple[tuple[tuple[str, TensorSummary], ...], Tensor]:
    """Return the summaries of selected cuts and scores of some images, and the scores."""
    wanted = list(dict.fromkeys([*nodes, network.logits]))
    images = images.to(device or images.device).contiguous(memory_format=torch.channels_last)
    taken = network.taps(wanted)(images)
    summaries = tuple((node, summary(a)) for node, a in zip(wanted, taken, strict=True))
    return summaries, taken[wanted.index(network.logits)].float()


def summary(a: Tensor) -> TensorSummary:
    """Return the summary of a tensor. Its memory format does not matter; the position of each number does."""
    exact = a.detach().double().cpu().reshape(-1)
    projection = (exact * _signs(len(exact))).sum() / math.sqrt(max(1, len(exact)))
    numbers = exact.mean(), exact.std(correction=0), projection
    return TensorSummary(**dict(zip(("mean", "std", "projection"), map(_short, numbers), strict=True)))


def _short(value: Tensor) -> float:
    return float(f"{float(value):.{DIGITS}g}")


@lru_cache(maxsize=16)
def _signs(num: int) -> Tensor:
    return torch.randint(2, (num,), generator=torch.Generator().manual_seed(num)).double() * 2 - 1


def difference(kept: Fingerprint, found: Fingerprint, *, tolerance: float = DEFAULT_TOLERANCE) -> str | None:
    """Return where two fingerprints differ, the first cut in words; None where they agree.

    Images are compared where both looked at the same ones, cuts where both have them.
    """
    parts = [("noise", kept.noise, found.noise)]
    if found.images_digest and kept.images_digest == found.images_digest:
        parts.append(("the first evaluation images", kept.images, found.images))
    for what, before, now in parts:
        known = dict(before)
        for node, came in now:
            if node in known and not _agree(known[node], came, tolerance):
                was = known[node]
                return (
                    f"on {what} its activations at {node!r} have mean {came.mean:.4g} and standard deviation "
                    f"{came.std:.4g}, where they had {was.mean:.4g} and {was.std:.4g}"
                    + ("" if _differ_in_size(was, came, tolerance) else ", and their numbers have other places")
                )
    return None


def _agree(one: TensorSummary, other: TensorSummary, tolerance: float) -> bool:
    scale = max(one.std, other.std)
    return not _differ_in_size(one, other, tolerance) and _near(one.projection, other.projection, tolerance * scale)


def _differ_in_size(one: TensorSummary, other: TensorSummary, tolerance: float) -> bool:
    scale = max(one.std, other.std, abs(one.mean), abs(other.mean))
    return not (_near(one.mean, other.mean, tolerance * scale) and _near(one.std, other.std, tolerance * scale))


def _near(one: float, other: float, most: float) -> bool:
    """Return whether two numbers are near; NaN, and an infinite number, is near itself."""
    return one == other or (math.isnan(one) and math.isnan(other)) or abs(one - other) <= most


def tolerance_of(network: CutNetwork) -> float:
    """Return the relative difference that rounding may make, by the type that the network's weights have."""
    kinds = {value.dtype for value in network.module.parameters()}
    return max((TOLERANCE[kind] for kind in kinds if kind in TOLERANCE), default=DEFAULT_TOLERANCE)


# Fingerprints in a store ----------------------------------------------------------------------------------------------


def identify(
    plain_id: str, found: Fingerprint, kept: FingerprintStore, *, name: str, tolerance: float, as_another: bool
) -> tuple[str, Fingerprint]:
    """Return the address of a network, and its fingerprint as the store has it or will have it.

    `plain_id`, the digest of weights, code and so on, is the address of the first network that a store knows under it.
    A network that computes something else although its weights and code are the same is another network.

    Args:
        plain_id: Digest of all of the network that is known without running it.
        found: What the network computes now.
        kept: The store.
        name: The model's name, for the error.
        tolerance: Relative difference that rounding may make.
        as_another: Whether a network that computes something else gets an address of its own.

    Raises:
        InputError: If the network computes something else, and `as_another` is off.
    """
    told, number = None, 0
    for number, (original, before) in enumerate(_versions(plain_id, kept, found), start=1):
        unlike = difference(before, found, tolerance=tolerance)
        if unlike is None:
            return _address(plain_id, number - 1, original), before if before.images else found
        told = unlike
    if told is None:
        return plain_id, found
    if not as_another:
        raise InputError(
            f"{name} no longer computes what it did: {told}. Its weights and its own code are the same, so "
            "something else changed: a file or environment variable that the code reads, or the version of a library. "
            "Restore that, or use --update to measure the model as another network."
        )
    return _address(plain_id, number, found), found


def unregistered(plain_id: str, found: Fingerprint, kept: FingerprintStore, *, tolerance: float) -> dict[str, bytes]:
    """Return the fingerprints that a store does not hold yet: content by key; empty where it knows the network.

    New evaluation images are kept for a network that is known by its noise.
    """
    versions = list(_versions(plain_id, kept, found))
    for number, (_, before) in enumerate(versions):
        if difference(before, found, tolerance=tolerance) is None:
            key = _images_key(plain_id, number, found)
            return {} if before.images else {key: to_json(replace(found, noise=()))}
    return {_key(plain_id, len(versions), found): to_json(found)}


def keys_of(plain_id: str, found: Fingerprint, kept: FingerprintStore) -> list[str]:
    """Return the keys of all that a store keeps under an address for images of one size; each leads to the next."""
    keys, number = [], 0
    while kept.has_artefact(KIND, key := _key(plain_id, number, found)):
        keys += [key, _images_key(plain_id, number, found)]
        number += 1
    return [key for key in keys if kept.has_artefact(KIND, key)]


def keys_of_first(plain_id: str, found: Fingerprint) -> set[str]:
    """Return the keys of the first fingerprint of an address: the one kept first, and the one of these images."""
    return {_key(plain_id, 0, found), _images_key(plain_id, 0, found)}


def _versions(plain_id: str, kept: FingerprintStore, found: Fingerprint) -> Iterator[tuple[Fingerprint, Fingerprint]]:
    """Yield the fingerprints that a store knows under an address for images of one size, the oldest first.

    Each comes twice: as it was kept first, and with the summaries of `found`'s images where they are known, else none.
    """
    number, digest_found = 0, found.images_digest
    while kept.has_artefact(KIND, key := _key(plain_id, number, found)):
        original = from_json(kept.read_artefact(KIND, key))
        of_images = _images_key(plain_id, number, found)
        if original.images_digest == digest_found:
            yield original, original
        elif kept.has_artefact(KIND, of_images):
            images = from_json(kept.read_artefact(KIND, of_images)).images
            yield original, replace(original, images=images, images_digest=digest_found)
        else:
            yield original, replace(original, images=(), images_digest="")
        number += 1


def _key(plain_id: str, number: int, found: Fingerprint) -> str:
    return digest("fingerprint", plain_id, canonical(found.input_shape), str(number))


def _images_key(plain_id: str, number: int, found: Fingerprint) -> str:
    return digest("fingerprint", plain_id, canonical(found.input_shape), str(number), found.images_digest)


def _address(plain_id: str, number: int, content: Fingerprint) -> str:
    """Return the address of a network by its number among those with one plain id; else its content decides it."""
    return plain_id if number == 0 else digest("network", plain_id, to_json(content))


def to_json(fingerprint: Fingerprint) -> bytes:
    """Return a fingerprint as it is stored."""
    return canonical(asdict(fingerprint)).encode()


def from_json(content: bytes) -> Fingerprint:
    """Return a stored fingerprint."""
    table: Mapping[str, Any] = json.loads(content)
    return Fingerprint(
        input_shape=tuple(table["input_shape"]),
        noise=_summaries(table["noise"]),
        images=_summaries(table["images"]),
        images_digest=table["images_digest"],
    )


def _summaries(rows: Sequence[tuple[str, Mapping[str, float]]]) -> tuple[tuple[str, TensorSummary], ...]:
    return tuple((node, TensorSummary(**values)) for node, values in rows)
