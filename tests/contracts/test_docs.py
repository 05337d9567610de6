"""README and the manual: they name what is there, hold what the code says, and every code block in them runs."""

import re
import subprocess
import sys
from typing import get_args

import pytest
import yaml
from click.testing import CliRunner
from helpers_docs import JOB, PAGES, ROOT, blocks, check_command, commands_in, merged

import stitchgrid as sg
from stitchgrid.catalog import Catalog
from stitchgrid.catalog.output_formats import OUTPUT_FORMATS
from stitchgrid.cli import cli
from stitchgrid.datasets.registry import DATASETS
from stitchgrid.errors import InputError
from stitchgrid.jobfile import parse_job
from stitchgrid.manual import FOLDER, TOPICS, overview, page, summary
from stitchgrid.manual.generated import FILES, SECTIONS, filled
from stitchgrid.matchers.params import Rules
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.store import Store

READING = {"answer", "query", "sql", "status", "matchers", "models", "manual", "atlas", "export", "report", "check"}
INLINE = re.compile(r"`stitchgrid ([a-z]+)([^`]*)`")


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory):
    """Make a folder with a store, `grid`, that holds a sweep of the quickstart's name."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "quickstart.toml").write_text(JOB)
    done = CliRunner().invoke(
        cli, ["launch", str(folder / "quickstart.toml"), "--store", str(folder / "grid"), "--address", "none"]
    )
    assert done.exit_code == 0, done.output
    return folder


# What the pages name


def test_licence_types_and_manual_lie_in_the_package():
    for name in ("LICENSE", "py.typed", "manual/start.md", "manual/example.py"):
        assert (ROOT / "stitchgrid" / name).is_file()


def test_the_readme_is_short():
    assert PAGES["README"].count("\n") <= 150


def test_the_readme_lists_every_topic_and_its_links_lead_somewhere():
    for topic in TOPICS:
        assert f"[{topic}](stitchgrid/manual/{topic}.md) | {summary(topic)} |" in PAGES["README"]
    for name, text in PAGES.items():
        base = ROOT if name == "README" else FOLDER
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            assert "://" in link or (base / link).exists(), f"{name}: {link}"


def test_every_page_is_a_topic_and_says_in_a_line_what_is_in_it():
    assert sorted(path.stem for path in FOLDER.glob("*.md")) == sorted(TOPICS)
    for topic in TOPICS:
        title, blank, line, after = page(topic).split("\n")[:4]
        assert title.startswith("# ")
        assert (blank, after) == ("", "")
        assert line.endswith(".")
    assert len(overview()) == len(TOPICS)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_only_topics_commands_and_options_that_there_are(name):
    text = re.sub(r"\s+", " ", PAGES[name])
    for command, rest in INLINE.findall(text):
        assert command in cli.commands, command
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert any(option in one.opts + one.secondary_opts for one in cli.commands[command].params), option
        if command == "manual" and (word := rest.split()) and word[0].islower():
            assert word[0] in TOPICS, word[0]


def test_commands_are_all_in_the_manual():
    for name in cli.commands:
        assert f"`stitchgrid {name}" in page("commands"), name


@pytest.mark.parametrize(
    "name",
    sorted(
        path.name + "/" * path.is_dir()
        for path in (ROOT / "stitchgrid").iterdir()
        if path.suffix == ".py" or path.is_dir()
    ),
)
def test_the_manual_maps_every_module(name):
    assert name.startswith("_") or f"`{name}`" in page("how-it-works")


def test_the_manual_maps_no_module_that_is_not_there():
    named = [line.split("`")[1] for line in page("how-it-works").splitlines() if line.startswith("| `")]
    rows = [name for name in named if name.endswith(("/", ".py"))]
    assert len(rows) > 10
    missing = [row for row in rows if not (ROOT / row).exists() and not (ROOT / "stitchgrid" / row).exists()]
    assert missing == []


@pytest.mark.parametrize("name", Rules.model_fields)
def test_the_manual_explains_every_rule_of_alignment(name):
    field = Rules.model_fields[name]
    for value in get_args(field.annotation):
        assert value == field.default or f'`{name} = "{value}"`' in page("networks")


# What the pages take from the code


@pytest.mark.parametrize("topic", TOPICS)
def test_what_a_page_takes_from_the_code_is_as_the_code_has_it(topic):
    assert filled(page(topic)) == page(topic), "run `python -m stitchgrid.manual`"


def test_every_key_of_a_job_file_is_told_in_a_line():
    for section, table in SECTIONS.items():
        assert f"<!-- from the code: keys {section} -->" in page("job"), section
        for name, field in table.model_fields.items():
            assert field.description, f"{section}: {name}"
            assert f"| `{name}` | " in page("job"), f"{section}: {name}"


def test_every_kind_has_a_card_and_where_it_takes_arrays_a_typed_measure():
    again = "run `python -m stitchgrid.manual`"
    assert re.findall(r"^### (\w+)$", page("matchers"), flags=re.M) == list(MATCHERS), again
    measures = FILES[-1].read_text()
    assert filled(measures) == measures, again
    typed = re.findall(r"^(\w+): (?:Index|Stitcher)$", measures, flags=re.M)
    assert typed == [kind for kind, about in MATCHERS.items() if not about.is_trained], again


def test_every_kind_of_data_set_is_told():
    told = re.findall(r'^\| `"([a-z]+)"` \| ', page("data"), flags=re.M)
    assert told == list(DATASETS), "run `python -m stitchgrid.manual`"
    for name, known in DATASETS.items():
        assert callable(known.load()), f"write `where` of {name}: module:class in stitchgrid/datasets"


def test_every_format_of_tables_is_written_and_told():
    for name, one in OUTPUT_FORMATS.items():
        assert callable(one.load()), f"write `where` of {name}: module:function in stitchgrid/catalog"
        assert f"| `{name}` | " in page("sql"), "run `python -m stitchgrid.manual`"


def test_a_change_in_the_code_is_noticed():
    stale = page("job").replace("| `epochs` | whole number from 1 |", "| `epochs` | number |")
    assert stale != page("job") == filled(stale)


# What is in the code blocks


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_is_a_job_file_or_part_of_one(block, tmp_path):
    parse_job(merged(block.text), title=str(block), base=tmp_path)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_yaml(block):
    document = yaml.safe_load(block.text)
    assert document["kind"] == "RayJob"
    [words] = commands_in(document["spec"]["entrypoint"])
    check_command(words)


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_shell_lines_are_what_the_commands_take(block):
    assert subprocess.run(["bash", "-n"], input=block.text, text=True, check=False).returncode == 0
    for words in commands_in(block.text):
        check_command(words)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=f"{block}-{' '.join(words)[:40]}")
        for block in blocks("sh")
        if block.page != "start"
        for words in commands_in(block.text)
        if words[0] in READING and not any("$" in word or "://" in word for word in words)
    ],
)
@pytest.mark.usefixtures("quick_fonts")
def test_shell_lines_that_read_run(words, store_folder, monkeypatch):
    monkeypatch.chdir(store_folder)
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("block", blocks("sql"), ids=str)
def test_sql_runs(block, store_folder, tmp_path):
    if "-- columns:" in block.text:
        file = tmp_path / "question.sql"
        file.write_text(block.text)
        done = CliRunner().invoke(cli, ["query", str(file), "--store", str(store_folder / "grid")])
        assert done.exit_code == 0, done.output
        return
    statements = [one for one in block.text.split(";") if one.strip()]
    with Catalog(Store.open(store_folder / "grid")) as catalog:
        for statement in statements:
            assert catalog.query(statement).num_columns > 0


def test_sql_has_every_view_and_no_column_that_is_not_there(store_folder):
    views = page("sql").partition("## Views\n")[2]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]*) \|$", views, flags=re.M)
    with Catalog(Store.open(store_folder / "grid")) as catalog:
        assert {name for name, _ in rows} >= {"results", "cells", "models", "layers", "pairs", "answers", "probes"}
        for view, told in rows:
            columns = catalog.query(f"from {view} limit 0").column_names
            if view in ("results", "models", "probes", "layers"):
                named = re.findall(r"`([a-z_]+)`", told)
                assert [name for name in named if name not in columns and name != "target_"] == []


@pytest.mark.parametrize("block", [one for one in blocks("python") if not one.file and one.page != "start"], ids=str)
@pytest.mark.usefixtures("quick_fonts")
def test_python_runs(block, store_folder, monkeypatch):
    monkeypatch.chdir(store_folder)
    monkeypatch.setattr(sg, "launch", lambda *_, **__: None, raising=False)  # the store has it
    (store_folder / "atlas.html").unlink(missing_ok=True)
    text = block.text.replace('"cka_unbiased"', '"cka"')
    for much, less in {"shuffled=20": "shuffled=2", "groups=10": "groups=4"}.items():
        text = text.replace(much, less)
    exec(compile(text, str(block), "exec"), {})


def test_all_languages_of_code_blocks_are_tried():
    assert {block.language for block in blocks()} == {"python", "sh", "sql", "toml", "yaml", "text", "bibtex"}


# The commands


def test_the_manual_lists_its_topics():
    shown = CliRunner().invoke(cli, ["manual"])
    assert shown.exit_code == 0
    assert [line.split()[0] for line in shown.output.splitlines()] == list(TOPICS)


def test_a_page_goes_into_a_pipe_as_it_is_written():
    assert CliRunner().invoke(cli, ["manual", "job"]).output == page("job")


def test_a_page_is_laid_out_at_a_terminal(monkeypatch):
    from stitchgrid.cli.first_steps import _laid_out

    monkeypatch.setenv("COLUMNS", "90")
    shown = _laid_out(page("job"))
    assert "<!--" not in shown
    assert "|---" not in shown
    assert max(map(len, shown.splitlines())) <= 90


def test_an_unknown_topic_is_refused_with_the_nearest():
    done = CliRunner().invoke(cli, ["manual", "matcher"])
    assert done.exit_code == 2
    assert "the manual has no topic 'matcher'; did you mean 'matchers'? known: " in done.output
    with pytest.raises(InputError, match="no topic"):
        page("../README")


@pytest.mark.parametrize("command", cli.commands.values(), ids=lambda command: command.name)
def test_every_command_explains_itself_with_an_example(command):
    assert "Example:" in command.help


def test_importing_the_command_line_loads_nothing_heavy():
    code = "import stitchgrid.cli, sys; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()
    assert not {"torch", "ray", "duckdb", "pyarrow", "pydantic", "matplotlib"} & set(loaded)
