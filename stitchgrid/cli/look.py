"""Commands that look at what there is: models, layers, matchers."""

import json
import re

import click

from stitchgrid.cli.saying import say
from stitchgrid.errors import InputError


@click.command()
@click.argument("pattern", default="*")
def models(pattern: str) -> None:
    """List the architectures a job file can name; PATTERN is a glob.

    \b
    Example:
      stitchgrid models 'torchvision:*resnet*'
    """
    from stitchgrid.errors import nearest
    from stitchgrid.models.catalogue import architecture_names

    names = architecture_names(pattern)
    if not names:
        raise InputError(f"no architecture matches {pattern!r}; {nearest(pattern, architecture_names())}.")
    say("\n".join(names))


@click.command()
@click.argument("kind", required=False)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to write it.")
def matchers(kind: str | None, form: str) -> None:
    """List the kinds of matchers, or tell everything about KIND: parameters, metrics, range, invariances, source.

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
@click.argument("model")
@click.option("--all", "every", is_flag=True, help="Every cut; default: the blocks.")
@click.option(
    "--input-size", metavar="HxW", help="Size of the images; default: 32x32 for stitchgrid's own, else 224x224."
)
@click.option("--args", "arguments", default="{}", help="Keyword arguments of the architecture, as JSON.")
@click.option("--channels", type=click.Choice(["1", "3"]), default="3", help="Channels of the images; 1 is luminance.")
@click.option("--inputs", default="{}", help="Constants for further arguments of its forward, as JSON.")
@click.option("--output", help="Which of the things that it returns are the scores: a key, attribute or position.")
def layers(
    model: str,
    every: bool,
    input_size: str | None,
    arguments: str,
    channels: str,
    inputs: str,
    output: str | None,
) -> None:
    """List the layers at which a model can be cut: name, depth, kind, axes, shape.

    Of axes N are images, C and D features, H rows, W columns, T tokens; the shape is one image's. Tokens are so many
    before a grid (class and register tokens), and the grid. Layers of kind `other` cannot be stitched.

    MODEL is an architecture as in a job file: torchvision:NAME, stitchgrid:NAME, FILE.py:function, ...

    \b
    Example:
      stitchgrid layers torchvision:resnet18
      stitchgrid layers stitchgrid:resnet20 --all --input-size 32x32
    """
    from stitchgrid.models.build import make_network
    from stitchgrid.models.cutting import cut_network, types_notice, way_notice
    from stitchgrid.models.select import select_layers
    from stitchgrid.records import Interface, NetworkSpec, canonical

    spec = NetworkSpec(name=model, entry=model, architecture=model, args=canonical(_json_object(arguments, "--args")))
    height, width = _size(input_size) if input_size else _usual_size(model)
    position = output is not None and output.isdigit()
    interface = Interface(
        inputs=canonical(_json_object(inputs, "--inputs")), output=int(output) if output and position else output
    )
    cut = cut_network(make_network(spec), (int(channels), height, width), interface)
    if notice := way_notice(model, cut.way, cut.reason):
        say(notice, err=True)
    if notice := types_notice(model, cut.types, "fp32"):
        say(notice, err=True)
    chosen = cut.cuts if every else select_layers(cut, ("blocks",))
    longest = max(len(one.name) for one in chosen)
    for one in chosen:
        layer = one.layer
        shape = "x".join(map(str, layer.shape))
        grid = (
            ""
            if layer.grid is None or layer.kind == "map"
            else f"  {layer.num_prefix} + {layer.grid[0]}x{layer.grid[1]}"
        )
        say(f"{one.name:{longest}}  {layer.depth:.3f}  {layer.kind:6}  {layer.axes:4}  {shape}{grid}")


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


def _usual_size(model: str) -> tuple[int, int]:
    """Return the image size an architecture of this family was made for."""
    small = model.startswith("stitchgrid:")
    return (32, 32) if small else (224, 224)
