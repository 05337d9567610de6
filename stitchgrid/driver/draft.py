"""Two networks and images -> a commented job file that runs: what `stitchgrid init` writes."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from stitchgrid.datasets.found_images import FoundImages
from stitchgrid.driver.preview import EmptyStore
from stitchgrid.jobfile import Job, parse_job
from stitchgrid.jobfile.toml_text import parse_toml
from stitchgrid.jobfile.values import LONGEST_SWEEP
from stitchgrid.models.build import default_preprocess
from stitchgrid.models.facts import usual_size
from stitchgrid.models.registry import USUAL_WEIGHTS, usual_weights
from stitchgrid.paths import named_path
from stitchgrid.records import Network, architecture_word
from stitchgrid.resolve import open_job_images, resolve

MOST_TO_FIT, MOST_TO_REPORT = 2_000, 1_000  # images
GROUPS, GROUP_IMAGES = 20, 4  # most groups of evaluation images; fewest images in each
TITLE = "the job that was to be written has problems"
PREPROCESS = "{ mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A network as the user asks for it."""

    architecture: str
    weights: str | None = None  # a checkpoint, a published name, "train", "random"; None: what its library publishes

    @property
    def library(self) -> str | None:
        """The library that the network comes from; None for the user's own code."""
        origin = architecture_word(self.architecture).origin
        return origin if origin in USUAL_WEIGHTS else None


def draft(file: Path, source: Wish, target: Wish, found: FoundImages, *, say: Callable[[str], None]) -> str:
    """Return the text of a job that compares two networks on images, with paths relative to the job file.

    It builds the networks, without their weights, so that the job fits both.

    Raises:
        JobFileError: If a network cannot be built, or does not take such images.
    """
    base, wishes = file.absolute().parent, (source, target)
    write = partial(_text, base, wishes, found, _job_name(file))
    networks = _built(write(labels=True), base)
    has_other_classes = any(
        network.head.has_classes and network.num_classes != len(found.classes) for network in networks
    )
    text = write(labels=not has_other_classes)
    _checked(text, base)
    for wish in wishes:
        if _weights(wish) == "random":
            say(f"{wish.architecture} is untrained, since no weights were named; write them into the job.")
    return text


def _job_name(file: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", file.stem).lstrip(".")[:LONGEST_SWEEP] or "job"


def _checked(text: str, base: Path) -> Job:
    return parse_job(parse_toml(text), title=TITLE, base=base)


def _built(text: str, base: Path) -> tuple[Network, ...]:
    """Return the networks of a job, built without their weights for a few of its images.

    Raises:
        JobFileError: If one cannot be built or cut, or does not take such images.
    """
    table = parse_toml(text)
    for model, spec in zip(table["models"], _checked(text, base).network_specs(), strict=False):
        if spec.preprocess is None:
            usual = {key: value for key, value in asdict(default_preprocess(spec)).items() if value is not None}
            model["preprocess"] = usual
        model["weights"] = "random"
    table["data"] |= {"labels": "agreement"}
    table["data"]["fit"]["samples"] = 1
    table["data"]["eval"]["samples"] = 2
    table |= {"controls": {}, "intervals": {}, "diagnostics": {}, "matchers": [{"kind": "cka"}]}
    plain = parse_job(table, title=TITLE, base=base)
    return resolve(plain, open_job_images(plain), EmptyStore()).sweep.networks


def _text(base: Path, wishes: tuple[Wish, Wish], found: FoundImages, job_name: str, *, labels: bool) -> str:
    names = _names(wishes)
    num_fit, num_eval = _shares(found)
    groups = min(GROUPS, num_eval // GROUP_IMAGES)
    agreement = (
        'labels = "agreement"               # the networks know other classes than these: what needs labels is left out'
    )
    lines = [
        f"# Which layers of {names[1]} can be computed from layers of {names[0]}?",
        f"name = {_quoted(job_name)}",
        "",
        "[data]",
        f"dataset = {_quoted(_from(base, found.dataset))}",
        *([f"root = {_quoted(_from(base, found.root))}   # as seen from this file"] if found.root else []),
        *(["download = true"] if found.download else []),
        *([] if labels else [agreement]),
        f"fit  = {{ split = {_quoted(found.fit_split)}, samples = {num_fit} }}   # images on which maps are fitted",
        f"eval = {{ split = {_quoted(found.eval_split)}, samples = {num_eval} }}   # others, for all reported values",
        *_model(base, names[0], wishes[0], found),
        *_model(base, names[1], wishes[1], found),
        *(
            ["seed = 1                           # another seed, or both would be the same network"]
            if _are_one(wishes)
            else []
        ),
        "",
        "[grid]",
        f"pairs = [[{_quoted(names[0])}, {_quoted(names[1])}]]   # from the first into the second; "
        '"all": both ways, and each with itself',
        "",
        "[[matchers]]",
        'kind = "direct"                    # stitching by least squares; `stitchgrid matchers` lists all kinds',
        "",
        "[[matchers]]",
        'kind = "cka_unbiased"              # an index: it compares activations, without a stitch',
        "",
        "# These tables tell how far an answer can be relied on; leave them out for a quick look.",
        "[controls]",
        "untrained = true                   # are the networks just as similar before training?",
        "shuffled = 40                      # is a value just as good when the source's images are shuffled?",
        "",
        "[diagnostics]",
        'ood = ["mahalanobis"]              # does the output of a stitch look like activations of the target?',
    ]
    if groups >= 2:
        lines += [
            "",
            "[intervals]",
            f"groups = {groups}                        # how far would a value move with other images?",
        ]
    if any(_weights(wish) == "train" for wish in wishes):
        lines += ["", "[recipes.usual]", "epochs = 20", 'schedule = "onecycle"']
    return "\n".join(lines) + "\n"


def _model(base: Path, name: str, wish: Wish, found: FoundImages) -> list[str]:
    library, weights = wish.library, _weights(wish)
    told = '{ train = "usual" }' if weights == "train" else _quoted(_weights_from(base, weights, library))
    remark = {
        "random": '   # untrained; a checkpoint ("run1.pt") goes here',
        "DEFAULT": "   # torchvision's own",
        "pretrained": "   # timm's own",
    }.get(weights, "")
    lines = [
        "",
        "[[models]]",
        f"name = {_quoted(name)}",
        f"architecture = {_quoted(_from(base, wish.architecture) if library is None else wish.architecture)}",
        f"weights = {told}{remark}",
    ]
    if library == "stitchgrid":
        lines.append(f"args = {{ num_classes = {len(found.classes)} }}")
    if weights not in ("DEFAULT", "pretrained"):  # those come with their preprocessing
        height, width = usual_size(wish.architecture)
        lines += (
            [f"# preprocess = {PREPROCESS}   # as it was trained with"]
            if found.is_of_one_size
            else [
                f"preprocess = {{ resize = [{height}, {width}] }}   # the images differ in size; add mean and std as "
                "it was trained with"
            ]
        )
    return lines


def _weights(wish: Wish) -> str:
    return wish.weights or usual_weights(wish.architecture)


def _are_one(wishes: tuple[Wish, Wish]) -> bool:
    """Return whether both would be initialised alike, and trained alike."""
    first, second = wishes
    return first.architecture == second.architecture and _weights(first) == _weights(second) in ("train", "random")


def _names(wishes: tuple[Wish, Wish]) -> tuple[str, str]:
    """Return the networks' names: those of their functions, with -a and -b behind them where both are the same."""
    words = [re.sub(r"[^A-Za-z0-9._-]", "-", architecture_word(wish.architecture).name) or "network" for wish in wishes]
    return (words[0], words[1]) if words[0] != words[1] else (f"{words[0]}-a", f"{words[1]}-b")


def _shares(found: FoundImages) -> tuple[int, int]:
    """Return how many images to fit on, and to report on."""
    if found.fit_split != found.eval_split:
        return min(MOST_TO_FIT, found.num_fit), min(MOST_TO_REPORT, found.num_eval)
    num_eval = min(MOST_TO_REPORT, found.num_eval // 2)
    return min(MOST_TO_FIT, found.num_eval - num_eval), num_eval


def _weights_from(base: Path, weights: str, library: str | None) -> str:
    """Return weights as the job file names them: a checkpoint's path relative to it, or a word."""
    is_file = named_path(weights).exists()
    return _from(base, weights) if is_file or (library is None and weights != "random") else weights


def _from(base: Path, word: str) -> str:
    """Return a path, which `:function` may follow, relative to a folder; a word that names no file stays as it is."""
    where, colon, function = word.rpartition(":") if ".py:" in word else (word, "", "")
    path = named_path(where)
    if not path.exists():
        return word
    return f"{os.path.relpath(path.absolute(), base)}{colon}{function}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
