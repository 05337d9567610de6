"""Write stitchgrid/models/architectures.json anew, in half an hour of one core.

`python tests/models/write_architectures.py` does it.

Of timm's architectures parameters and input sizes alone are told; they are built without memory for their weights.
"""

import json
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from stitchgrid.errors import StitchgridError
from stitchgrid.models.facts import TABLE, Facts, as_entry, measure, usual_size
from stitchgrid.models.registry import library_names
from stitchgrid.records import Interface, NetworkSpec

OUT = Path(__file__).parents[2] / "stitchgrid" / "models" / TABLE
USUAL = Interface()


def measured(architecture: str) -> Facts:
    """Return what is told of one of stitchgrid's or torchvision's architectures."""
    spec = NetworkSpec(name=architecture, entry=architecture, architecture=architecture, args="{}")
    return replace(measure(spec, (3, *usual_size(architecture)), USUAL), notices=())


def of_timm(name: str) -> Facts:
    """Return what is told of one of timm's."""
    import timm

    with torch.device("meta"):
        module = timm.create_model(name)
    _, height, width = module.default_cfg["input_size"]
    return Facts(parameters=sum(p.numel() for p in module.parameters()), input_size=(height, width))


def main() -> None:
    """Measure all of them."""
    table = {}
    for library in ("stitchgrid", "torchvision", "timm"):
        for name in library_names(library):
            word = f"{library}:{name}"
            try:
                table[word] = as_entry(of_timm(name) if library == "timm" else measured(word))
            except (StitchgridError, RuntimeError, NotImplementedError, ValueError) as problem:
                sys.stderr.write(f"{word}: {str(problem)[:200]}\n")
            else:
                sys.stderr.write(f"{word}: {table[word]['parameters']} parameters\n")
    versions = {library: version(library).partition("+")[0] for library in ("torchvision", "timm")}
    lines = ",\n".join(
        f"{json.dumps(word)}: {json.dumps(entry, separators=(',', ':'))}" for word, entry in table.items()
    )
    OUT.write_text(f'{{"versions": {json.dumps(versions)},\n"architectures": {{\n{lines}\n}}}}\n', "utf-8")


if __name__ == "__main__":
    main()
