"""What pages of the manual take from the code: tables of keys, cards of matchers.

It stands between `<!-- from the code: NAME WORDS -->` and `<!-- end -->`, in Python between `# from the code: NAME` and
`# end`. `python -m stitchgrid.manual` writes it anew, and a test holds the files to it.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from textwrap import wrap
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stitchgrid.catalog.output_formats import OUTPUT_FORMATS
from stitchgrid.datasets.registry import DATASETS, OTHERS
from stitchgrid.jobfile import comparison_tables, tables
from stitchgrid.jobfile.values import Wanted
from stitchgrid.manual import FOLDER, TOPICS
from stitchgrid.matchers.describe import needs, range_in_words
from stitchgrid.matchers.params import Rules, TrainingParams
from stitchgrid.matchers.protocol import About, GramIndex
from stitchgrid.matchers.registry import MATCHERS, kind_of

BLOCK = re.compile(
    r"(?P<begin>^(?:<!--|#) from the code: (?P<words>[^>\n]*?)(?: -->)?\n)(?P<text>.*?)(?P<end>^(?:<!--|#) end)",
    re.S | re.M,
)
#: The pages, and the module whose functions are those of the registry, with the type of each.
FILES = (*(FOLDER / f"{topic}.md" for topic in TOPICS), FOLDER.parent / "api/measures.py")

#: Of the job file, in the order of the manual, with the heading of each.
SECTIONS: dict[str, type[BaseModel]] = {
    "Outside of every table": tables.TopLevelTable,
    "[data]": tables.DataTable,
    "fit": tables.FitTable,
    "eval": tables.EvalTable,
    "[data.keys]": tables.KeysTable,
    "[data.outliers]": tables.OutliersTable,
    "[numerics]": tables.NumericsTable,
    "[[models]]": tables.ModelTable,
    "preprocess": tables.PreprocessTable,
    "weights": tables.CheckpointTable,
    "train": tables.TrainTable,
    "tokens": tables.TokensTable,
    "[recipes.NAME]": tables.RecipeTable,
    "[grid]": comparison_tables.GridTable,
    "[[matchers]]": comparison_tables.MatcherTable,
    "trained": comparison_tables.TrainedMatcherTable,
    "[controls]": comparison_tables.ControlsTable,
    "[intervals]": comparison_tables.IntervalsTable,
    "[diagnostics]": comparison_tables.DiagnosticsTable,
    "[diagnostics.energy]": comparison_tables.EnergyTable,
    "[probes]": comparison_tables.ProbesTable,
    "[limits]": tables.LimitsTable,
    "rules": Rules,
    "training": TrainingParams,
}
#: What a section adds to: those keys stand where they belong.
TOLD_BEFORE: dict[str, type[BaseModel]] = {"trained": comparison_tables.MatcherTable, "training": Rules}


def filled(text: str) -> str:
    """Return a file with all that it takes from the code as the code has it now."""
    return BLOCK.sub(lambda found: f"{found['begin']}{_block(found['words'])}{found['end']}", text)


def _block(words: str) -> str:
    name, _, rest = words.partition(" ")
    return "\n".join(PARTS[name](rest)) + "\n"


# Keys ---------------------------------------------------------------------------------------------------------------


def keys_table(section: str) -> Iterator[str]:
    """Yield the table of a section's keys: type, default and what each says."""
    yield "| key | type | default | says |"
    yield "|---|---|---|---|"
    table = SECTIONS[section]
    told = TOLD_BEFORE.get(section)
    above = told.model_fields if told else {}
    for name, field in table.model_fields.items():
        if name not in above:
            yield f"| `{name}` | {_cell(_type(field))} | {_default(field)} | {_cell(field.description or '')} |"


def _cell(text: str) -> str:
    """Return a text on one line, as tables need it."""
    return " ".join(text.split()).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    return f"`{_as_toml(value)}`"


def _as_toml(value: Any) -> str:
    """Return a default as one would write it in a job file."""
    if value == (None,):  # of ranks
        return '"full"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_toml, value))}]"
    return f"{value:,}".replace(",", "_") if isinstance(value, int) else str(value)


def _type(field: FieldInfo) -> str:
    for one in field.metadata:
        if isinstance(one, Wanted):
            return one.words
    return _words(field.annotation, field.metadata)


def _words(kind: Any, about: Iterable[Any] = ()) -> str:
    """Return a type in words."""
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        told = [one.words for one in more if isinstance(one, Wanted)]
        return told[0] if told else _words(inner, _flat(more))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_words(one, about) for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {_words(get_args(kind)[0])}"
    if get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return "table"
    return {str: "text", bool: "`true` or `false`", int: "whole number", float: "number"}[kind] + _bounds(_flat(about))


def _flat(about: Iterable[Any]) -> list[Any]:
    return [one for some in about for one in getattr(some, "metadata", [some])]


def _bounds(about: Iterable[Any]) -> str:
    words = {Ge: ("ge", "from"), Gt: ("gt", "above"), Le: ("le", "to"), Lt: ("lt", "below")}
    told = [(word, getattr(one, name)) for one in about for kind, (name, word) in words.items() if type(one) is kind]
    return "".join(f" {word} {bound:,}" for word, bound in told)


# Formats ------------------------------------------------------------------------------------------------------------


def formats_table(_: str) -> Iterator[str]:
    """Yield a line for each format of tables."""
    yield "| `--format` | usual for `--out` with | is |"
    yield "|---|---|---|"
    for one in OUTPUT_FORMATS.values():
        yield f"| `{one.name}` | {f'`{one.suffix}`' if one.suffix else ''} | {one.says} |"


# Data sets ----------------------------------------------------------------------------------------------------------


def datasets_table(_: str) -> Iterator[str]:
    """Yield a line for each kind of data set."""
    yield "| `dataset` | is |"
    yield "|---|---|"
    own = {f'`"{name}"`': known.says for name, known in DATASETS.items()}
    yield from (f"| {name} | {says} |" for name, says in (own | OTHERS).items())


# Matchers -----------------------------------------------------------------------------------------------------------

WIDTH = 120  # of the lines of a page
LETTERS = {"shift": "s", "scaling": "c", "permutation": "p", "rotation": "r", "linear": "l"}


def kinds_table(family: str) -> Iterator[str]:
    """Yield a line for each kind of a family."""
    yield "| kind | what it is | ranks layers by | range | symmetric | compares | invariant to | source |"
    yield "|---|---|---|---|---|---|---|---|"
    for about in MATCHERS.values():
        if about.family == family:
            score = about.metric(about.score)
            yield (
                f"| `{about.kind}` | {about.summary} | {score.name}, {score.better} is more similar | "
                f"{range_in_words(score.bounds)} | {'yes' if about.symmetric else 'no'} | {_compares(about)} | "
                f"{_invariances(about)} | {about.source} |"
            )


def _compares(about: About) -> str:
    return "images" if issubclass(kind_of(about.kind), GramIndex) else "positions"


def _invariances(about: About) -> str:
    sides = [" ".join(LETTERS[name] for name in LETTERS if name in side) or "none" for side in about.invariances]
    return sides[0] if sides[0] == sides[1] else f"source {sides[0]}, target {sides[1]}"


def cards(_: str) -> Iterator[str]:
    """Yield what the code says of each kind: what one asks it, its formula, when not to use it, facts, parameters."""
    for about in MATCHERS.values():
        yield from ("", f"### {about.kind}", "")
        yield from wrap(about.use, WIDTH, break_on_hyphens=False)
        yield ""
        yield from wrap(f"Do not use it where {about.not_when}.", WIDTH, break_on_hyphens=False)
        yield ""
        yield from inspect.cleandoc(kind_of(about.kind).__doc__ or "").splitlines()
        yield ""
        yield from _facts(about)
    yield ""


def _facts(about: About) -> Iterator[str]:
    score = about.metric(about.score)
    yield f"- Ranks layers by `{score.name}`, {score.better} is more similar, range {range_in_words(score.bounds)}"
    yield f"- Bias: {about.bias}"
    yield f"- Source and target {'may be exchanged' if about.symmetric else 'may not be exchanged'}"
    for side, some in zip(("source", "target"), about.invariances, strict=True):
        yield (
            f"- Does not change with the {side}'s {', '.join(sorted(some))}"
            if some
            else (f"- Changes with whatever is done to the {side}")
        )
    yield from (f"- {line[0].upper()}{line[1:]}" for line in needs(about))
    for name, field in about.params.model_fields.items():
        if name not in TrainingParams.model_fields:
            yield f"- `{name} = {_as_toml(field.default)}`: {field.description}"
    yield f"- Source: {about.source}"


def measures(_: str) -> Iterator[str]:
    """Yield the type of each measure of arrays."""
    for about in MATCHERS.values():
        if not about.is_trained:
            yield f"{about.kind}: {about.family.capitalize()}"


PARTS: dict[str, Callable[[str], Iterable[str]]] = {
    "keys": keys_table,
    "formats": formats_table,
    "datasets": datasets_table,
    "kinds": kinds_table,
    "cards": cards,
    "measures": measures,
}
