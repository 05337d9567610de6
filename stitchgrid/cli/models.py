"""Commands that list architectures, their layers, and matchers: models, layers, matchers."""

import json
import re
from dataclasses import asdict

import click

from stitchgrid.cli.complete import complete_architectures, complete_kinds
from stitchgrid.cli.files_out import emit
from stitchgrid.cli.options import FORMAT_AND_FILE
from stitchgrid.cli.output import say
from stitchgrid.errors import InputError


@click.command()
@click.argument("pattern", default="*", shell_complete=complete_architectures)
@FORMAT_AND_FILE
def models(pattern: str, form: str | None, out: str | None) -> None:
    """List the architectures a job file can name, with parameters, image size and blocks; PATTERN is a glob.

    The figures are of the architecture without arguments; a cell is empty if it was not measured.

    \b
    Example:
      stitchgrid models 'torchvision:*resnet*'
      stitchgrid models 'timm:*dino*' --format json
    """
    import pyarrow as pa

    from stitchgrid.errors import nearest
    from stitchgrid.models.facts import known_facts
    from stitchgrid.models.registry import architecture_names

    names = architecture_names(pattern)
    if not names:
        raise InputError(f"no architecture matches {pattern!r}; {nearest(pattern, architecture_names())}.")
    facts = [known_facts(name) for name in names]
    columns = {
        "architecture": names,
        "parameters": pa.array([None if one is None else one.parameters for one in facts], pa.int64()),
        "image_size": [None if one is None else "x".join(map(str, one.input_size)) for one in facts],
        "blocks": pa.array([len(one.layers) or None if one else None for one in facts], pa.int64()),
    }
    emit(pa.table(columns), form, out, every=True)


@click.command()
@click.argument("kind", required=False, shell_complete=complete_kinds)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def matchers(kind: str | None, form: str) -> None:
    """List the kinds of matchers, or describe KIND: parameters, metrics, range, invariances, source.

    \b
    Example:
      stitchgrid matchers
      stitchgrid matchers task_loss
    """
    from stitchgrid.errors import nearest
    from stitchgrid.matchers.describe import as_record, describe, overview
    from stitchgrid.matchers.registry import MATCHERS

    if kind is not None and kind not in MATCHERS:
        raise InputError(f"there is no matcher {kind!r}; {nearest(kind, MATCHERS)}.")
    if form == "json":
        say(json.dumps([as_record(about) for name, about in MATCHERS.items() if kind in (None, name)], indent=2))
    else:
        say("\n".join(overview(MATCHERS.values()) if kind is None else describe(MATCHERS[kind])))


@click.command()
@click.argument("model", shell_complete=complete_architectures)
@click.option("--all", "every", is_flag=True, help="Every cut; default: the blocks.")
@click.option(
    "--input-size", metavar="HxW", help="Size of the images; default: 32x32 for stitchgrid's own, else 224x224."
)
@click.option("--args", "arguments", default="{}", help="Keyword arguments of the architecture, as JSON.")
@click.option("--channels", type=click.IntRange(min=1), default=3, show_default=True, help="Channels of the images.")
@click.option("--inputs", default="{}", help="Constants for further arguments of the model's forward, as JSON.")
@click.option("--output", help="Which part of what the model returns holds the scores: a key, attribute or position.")
@FORMAT_AND_FILE
def layers(
    model: str,
    every: bool,
    input_size: str | None,
    arguments: str,
    channels: int,
    inputs: str,
    output: str | None,
    form: str | None,
    out: str | None,
) -> None:
    """List the layers at which a model can be cut: name, depth, kind, axes, shape, tokens, parameters.

    Axes: N images, C and D features, H rows, W columns, T tokens. The shape is that of one image. The tokens column
    gives the number of tokens before the grid (class and register tokens), then the grid. Parameters are counted in the
    module of this name. Layers of kind `other` cannot be stitched.

    MODEL is an architecture as in a job file: torchvision:NAME, stitchgrid:NAME, FILE.py:function, ...

    \b
    Example:
      stitchgrid layers torchvision:resnet18
      stitchgrid layers stitchgrid:resnet20 --all --input-size 32x32
    """
    import pyarrow as pa

    from stitchgrid.models.facts import COLUMNS, known_facts, measure, usual_size
    from stitchgrid.records import Interface, NetworkSpec, canonical

    usual = usual_size(model)
    size = _size(input_size) if input_size else usual
    values = canonical(_json_object(arguments, "--args"))
    position = output is not None and output.isdigit()
    interface = Interface(
        inputs=canonical(_json_object(inputs, "--inputs")),
        output=int(output) if output and position else output,
        averages=True,
    )
    plain = Interface(averages=True)
    is_usual = (size, values, channels, interface, every) == (usual, "{}", 3, plain, False)
    found = known_facts(model) if is_usual else None
    if found is None or not found.layers:
        spec = NetworkSpec(name=model, entry=model, architecture=model, args=values)
        found = measure(spec, (channels, *size), interface, patterns=("all",) if every else ("blocks",))
    for notice in found.notices:
        say(notice, err=True)
    rows = [asdict(line) for line in found.layers]
    told = pa.table({name: pa.array([row[name] for row in rows]) for name in COLUMNS})
    emit(told, form, out, every=True)


def _json_object(text: str, option: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError as problem:
        raise click.BadParameter(f"wanted JSON such as '{{\"depth\": 8}}': {problem}.", param_hint=option) from problem
    if not isinstance(value, dict):
        raise click.BadParameter(f"wanted a JSON object, got {text!r}.", param_hint=option)
    return value


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise click.BadParameter(f"wanted HxW such as 32x32, got {text!r}.", param_hint="--input-size")
    return int(match[1]), int(match[2] or match[1])
