"""The prompt of `stitchgrid sql`, what shells are offered, and the table of architectures."""

import json
import subprocess
import sys

import helpers_store
import pytest
from click import Argument, Context
from click.testing import CliRunner
from helpers_store import SWEEP, make_synthetic_store, plan_tables
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from stitchgrid.cli import cli
from stitchgrid.cli.complete import PLAIN, complete_layers, complete_networks, offering
from stitchgrid.cli.prompt import SessionCompleter, history_of_user, prompt
from stitchgrid.cli.session import Session
from stitchgrid.errors import QueryError
from stitchgrid.manual import TOPICS
from stitchgrid.matchers.registry import MATCHERS
from stitchgrid.models import facts
from stitchgrid.models.facts import LayerFacts, as_entry, known_architectures, known_facts, measure, usual_size
from stitchgrid.records import Interface, NetworkSpec
from stitchgrid.shipped_files import shipped_names
from stitchgrid.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompt") / "store"
    make_synthetic_store(folder)
    return str(folder)


@pytest.fixture
def session(store):
    one = Session(store)
    yield one
    one.close()


def typed(session: Session, keys: str) -> None:
    """Type keys at a prompt, then Ctrl-D."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys + "\x04")
        prompt(session, InMemoryHistory())


def offered(session: Session, text: str) -> list[str]:
    completer = SessionCompleter(session)
    return [one.text for one in completer.get_completions(Document(text), CompleteEvent())]


def test_a_statement_goes_on_until_its_semicolon(session, capsysbinary):
    typed(session, "select sweep,\r2 + 3 as five\rfrom cells limit 1;\r")
    told = capsysbinary.readouterr().out.decode()
    assert told.split()[:2] == ["sweep", "five"]
    assert [SWEEP, "5"] in [line.split() for line in told.splitlines()]


def test_what_cannot_be_done_is_said_and_the_prompt_goes_on(session, capfd):
    typed(session, "select nothing from cells;\r.tabels\rselect 6 * 7 as answer;\r")
    told = capfd.readouterr()
    assert "Error: DuckDB cannot run the query" in told.err
    assert "Error: there is no command .tabels; did you mean '.tables'" in told.err
    assert "42" in told.out


def test_ctrl_c_forgets_what_was_typed(session, capfd):
    typed(session, "select wrong\x03select 6 * 7 as answer;\r")
    told = capfd.readouterr()
    assert "42" in told.out
    assert "Error" not in told.err


def test_lines_with_a_dot(session, tmp_path, capfd):
    out, page = tmp_path / "some.csv", tmp_path / "page.html"
    for line in (".tables", ".schema cells", ".questions", ".questions progress", ".ask progress", ".explain select 1"):
        session.run(line)
    for line in (f".out {out}", "select 1 as one;", ".mode json", "select 2 as two", f".atlas {page}", ".help"):
        session.run(line)
    told = capfd.readouterr().out
    for part in ("answers", "cells: sweep, cell_id", "parameters:", "done", '"two":2', ".explain  "):
        assert part in told.replace(" ", "") or part in told
    assert out.read_text().split() == ["one", "1"]
    assert "<html" in page.read_text()
    session.run(".refresh")
    with pytest.raises(EOFError):
        session.run(".quit")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (".mode cvs", "there is no mode 'cvs'; did you mean 'csv'"),
        (".schema cell", "there is no view 'cell'; did you mean 'cells'"),
        (".ask progress now", "wanted K=V after the name of a question, got 'now'"),
        (".ask 'progress", "wanted .ask NAME"),
        (".ask progres", "progress"),
        (".out", "wanted .out FILE"),
        (".explain", "wanted .explain SELECT"),
        ("drop table cells;", "only"),
    ],
)
def test_wrong_lines_are_told(session, line, message):
    with pytest.raises(QueryError, match=message.replace(".", r"\.")):
        session.run(line)


def test_a_prompt_completes_what_the_store_has(session):
    assert "results" in offered(session, "select * from resu")
    assert "source_layer" in offered(session, "select source_l")
    assert SWEEP in offered(session, f"select * from cells where sweep = '{SWEEP[:3]}")
    assert offered(session, ".ta") == [".tables"]
    assert "best_source" in offered(session, ".ask best")


def test_the_history_is_kept_for_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    kept = history_of_user()
    assert isinstance(kept, FileHistory)
    kept.append_string("select 1;")
    path = tmp_path / "state" / "stitchgrid" / "sql_history"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(history_of_user().load_history_strings()) == ["select 1;"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert isinstance(history_of_user(), InMemoryHistory)


def test_without_a_terminal_a_statement_is_needed(store):
    told = CliRunner().invoke(cli, ["sql", "--store", store])
    assert told.exit_code == 2
    assert "give one statement" in told.output


# What shells are offered ----------------------------------------------------------------------------------------------


def completed(*words: str, store: str = "") -> list[str]:
    """Return what bash is offered for the last of these words."""
    env = {
        "_STITCHGRID_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["stitchgrid", *words]),
        "COMP_CWORD": str(len(words)),
        "STITCHGRID_STORE": store,
    }
    told = CliRunner(env=env).invoke(cli, [], prog_name="stitchgrid")
    return [line.partition(",")[2] for line in told.output.splitlines() if "," in line]


def test_a_shell_is_offered_what_there_is(store):
    assert completed("stat") == ["status"]
    assert SWEEP in completed("status", SWEEP[:3], store=store)
    assert "best_source" in completed("query", "best", store=store)
    assert "quickstart" in completed("launch", "quick")
    assert completed("matchers", "cka_u") == ["cka_unbiased"]
    assert "torchvision:resnet18" in completed("layers", "torchvision:resnet1")
    networks = completed("answer", SWEEP, "--source", "", store=store)
    assert networks
    assert any(word.startswith(f"{networks[0]}:") for word in completed("answer", "--target", networks[0], store=store))


MORE_THAN_WORDS = r"a$(id) $IFS a`id` a;id a|id a&id a>f a* a? a[b] a{b,c} a' a\b ~a =ls a# a!b (a) a^b @a -o --out=f"


@pytest.mark.parametrize("name", [*MORE_THAN_WORDS.split(), 'a"', "", "a b", "a\nplain,b", "a\x1b[2J", "a\u202e"])
def test_no_shell_is_offered_a_name_that_is_more_than_a_word_to_it(tmp_path, monkeypatch, name):
    monkeypatch.setattr(helpers_store, "MODELS", (name, "net/1"))
    monkeypatch.setattr(helpers_store, "LAYERS", ("conv1", f"{name}$", "a.b-c_1"))
    store = Store.open(tmp_path, create=True)
    store.write_plan(SWEEP, store.write_job(SWEEP, {}), **plan_tables(), info={})
    monkeypatch.setenv("STITCHGRID_STORE", str(tmp_path))
    offered_words = [
        item.value
        for complete in (complete_layers, complete_networks)
        for item in complete(Context(cli), Argument(["x"]), "")
    ]
    assert offered_words == ["net/1", "net/1:conv1", "net/1:a.b-c_1", "net/1"]


def test_a_shell_is_offered_the_names_of_architectures_twins_and_other_alphabets():
    names = ("timm:vit.a1_in1k", "b@untrained", "réseau=1,2+3%")
    assert [item.value for item in offering(lambda _: names)(Context(cli), Argument(["x"]), "")] == list(names)
    everything = [*known_architectures(), *shipped_names("queries", ".sql"), *shipped_names("jobs", ".toml"), *MATCHERS]
    assert all(PLAIN.fullmatch(name) for name in [*everything, *TOPICS])


def test_a_shell_is_offered_files_where_no_name_fits():
    assert completed("launch", "./mine") == ["./mine"]


def test_a_shell_is_told_nothing_where_there_is_no_store(tmp_path):
    assert completed("status", "", store=str(tmp_path / "none")) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_for_shells(shell):
    told = CliRunner().invoke(cli, ["completion", shell])
    assert told.exit_code == 0
    assert "_STITCHGRID_COMPLETE" in told.output


# Architectures --------------------------------------------------------------------------------------------------------

TORCHVISION = ("alexnet", "resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vit_b_32", "swin_t")


@pytest.mark.parametrize(
    "architecture", [*(f"stitchgrid:{name}" for name in ("tiny10", "vit_tiny", "resnet20")), "torchvision:alexnet"]
)
def test_the_table_of_architectures_is_what_is_measured(architecture):
    assert_true(architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*(f"torchvision:{name}" for name in TORCHVISION[1:]), "stitchgrid:resnet50"])
def test_the_table_of_larger_architectures_is_what_is_measured(architecture):
    assert_true(architecture)


def assert_true(architecture: str) -> None:
    known = known_facts(architecture)
    if known is None:
        pytest.skip("the table is of another version of the library")
    spec = NetworkSpec(name=architecture, entry=architecture, architecture=architecture, args="{}")
    assert as_entry(known) == as_entry(measure(spec, (3, *usual_size(architecture)), Interface()))


def test_another_version_of_a_library_is_measured_anew(monkeypatch):
    monkeypatch.setattr(facts, "installed_version", lambda library: "0.0.1")
    assert known_facts("torchvision:resnet18") is None
    assert facts.known_names("torchvision") is None
    assert known_facts("stitchgrid:tiny10") is not None


def test_every_architecture_of_the_table_has_its_facts():
    names = known_architectures()
    assert len(names) > 1_000
    assert all(one is None or one.parameters > 0 for one in map(known_facts, names))


def test_models_and_layers_are_told_without_torch():
    code = (
        "import sys; from stitchgrid.cli import cli; cli(sys.argv[1:], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    for words in (["models", "torchvision:*resnet*"], ["layers", "stitchgrid:tiny10"]):
        told = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert "parameters" in told.stdout.splitlines()[0]


def test_models_and_layers_as_json():
    told = CliRunner().invoke(cli, ["models", "stitchgrid:tiny10", "--format", "json"])
    (one,) = json.loads(told.stdout)
    assert one == {"architecture": "stitchgrid:tiny10", "parameters": 86778, "image_size": "32x32", "blocks": 8}
    told = CliRunner().invoke(cli, ["layers", "stitchgrid:tiny10", "--format", "json"])
    layers = [LayerFacts(**row) for row in json.loads(told.stdout)]
    assert [layer.name for layer in layers] == [f"relu{k}" for k in range(1, 9)]
