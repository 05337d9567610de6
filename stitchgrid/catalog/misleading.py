"""Count, for each pair of networks, the claims of trained stitches that direct matching and the detectors deny."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stitchgrid.catalog.query_files import Value, load_question


@dataclass(frozen=True, slots=True, kw_only=True)
class MisleadingClaims:
    """The claims of one matcher about one ordered pair of networks; each layer pair has one cell for each seed."""

    source: str
    target: str
    matcher: str
    params: str
    samples: int | None
    num_cells: int
    num_claims: int
    num_misleading: int
    num_unchecked: int  # claims for which nothing was computed that could deny them
    pairs: tuple[str, ...]  # "source layer -> target layer" of the misleading claims


def misleading_limits() -> dict[str, Value | None]:
    """Return the default thresholds of the query `misleading`, by name."""
    return {param.name: param.default for param in load_question("misleading").params}


def misleading_rule() -> str:
    """Return the rule of the query `misleading` in words, with its thresholds."""
    limits = misleading_limits()
    return (
        f"A trained stitch claims that two layers are alike when the stitched network keeps at least {limits['claim']} "
        "of the target's accuracy. Direct matching denies it when its residual for the same layers is "
        f"{limits['residual']} or more; a detector denies it when its AUROC is further than {limits['ood']} from 0.5. "
        "A claim is misleading when all of these that were computed deny it, and unchecked when none was computed."
    )


def count_misleading(rows: Iterable[Mapping[str, Any]]) -> list[MisleadingClaims]:
    """Count claims by networks and matcher; `rows` is what the query `misleading` returns with `all = true`."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = row["source_model"], row["target_model"], row["matcher"], row["params"], row["samples"]
        groups.setdefault(key, []).append(row)

    def order(key: tuple[Any, ...]) -> tuple[Any, ...]:
        *names, samples = key
        return *names, samples is None, samples or 0  # an unknown number of images comes last

    return [
        MisleadingClaims(
            source=source,
            target=target,
            matcher=matcher,
            params=params,
            samples=samples,
            num_cells=len(group),
            num_claims=sum(row["claims"] for row in group),
            num_misleading=sum(row["misleading"] is True for row in group),
            num_unchecked=sum(row["misleading"] is None for row in group),
            pairs=tuple(
                dict.fromkeys(f"{row['source_layer']} -> {row['target_layer']}" for row in group if row["misleading"])
            ),
        )
        for (source, target, matcher, params, samples), group in sorted(groups.items(), key=lambda item: order(item[0]))
    ]
