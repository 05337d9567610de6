"""The command `answer` and the view `pairs`."""

import csv
import io
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_answers import LAYERS, TWIN, Planted, drawn
from helpers_store import make_synthetic_store
from test_answers import changed, is_best, plain, unstored, valued, with_networks

from stitchgrid.api.answer_list import Answers
from stitchgrid.catalog import Catalog
from stitchgrid.catalog.answers import read_answers
from stitchgrid.catalog.verdict_rules import CHECKS
from stitchgrid.cli import cli
from stitchgrid.store import Store

KEYS = [
    *("target_model", "target_layer", "source_model", "source_layer", "matcher", "metric", "value", "low", "high"),
    "higher_is_similar",
    *("runner_up", "margin", "margin_low", "margin_high", "candidates", "p", "untrained_value", "verdict", "checks"),
]


def run(store, *arguments, code=0):
    result = CliRunner().invoke(cli, ["answer", *arguments, "--store", str(store.uri)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return plain("task_loss").write(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return drawn(3).write(tmp_path_factory.mktemp("grid"))


def test_an_option_for_a_layer_is_told():
    result = CliRunner().invoke(cli, ["answer", "planted", "--layer", "l1"])
    assert result.exit_code == 2
    assert "No such option: --layer; name the layer with its network, --target MODEL:LAYER." in result.output


def test_cells_that_diverged_are_told_below_the_answers(tmp_path):
    planted = changed(plain(), lambda cell: replace(cell, flags=("diverged",)), where=is_best)
    text = run(planted.write(tmp_path)).stdout
    assert "Best of 3 of 4 source layers: of the others, 1 diverged." in text
    assert "1 cells of direct diverged" in text
    every = changed(plain(), lambda cell: replace(cell, flags=("diverged",)))
    assert "16 cells of cka_unbiased, direct diverged" in run(every.write(tmp_path / "all")).stdout


def test_live_networks_are_not_resumed(tmp_path):
    live = {name: {"architecture": f"live:{name}"} for name in ("a", "b", f"a{TWIN}")}
    planted = with_networks(changed(plain(), lambda cell: replace(cell, null=None, replicates=None)), **live)
    text = run(replace(planted, info={"groups": 8, "shuffles": 0}).write(tmp_path)).stdout
    assert "resume" not in text
    assert "stitchgrid.compare(...), called again with the same networks," in text
    assert "What to add to the call of compare" in text
    assert "\n  shuffled=40 " in text
    empty = replace(planted, cells=[unstored(cell) for cell in planted.cells])
    assert "stitchgrid.compare(...)" in run(empty.write(tmp_path / "empty")).stdout


def test_python_prints_why_an_answer_is_weak(tmp_path):
    store = changed(plain(), lambda cell: replace(cell, null=None, replicates=None)).write(tmp_path)
    with Catalog(store) as catalog:
        found = Answers(read_answers(catalog, "planted"))
    lines = repr(found).splitlines()
    assert len(lines) == 2 * len(found) + 1
    assert lines[1] == "    not known: localised, above_untrained, above_shuffled"
    assert lines[-1].startswith("Not known: compare(..., groups=20, shuffled=40) computes it")
    assert lines[1].strip() in found._repr_html_()
    assert (found[0].best, found[0].interval) == ("l1", (None, None))


# Formats --------------------------------------------------------------------------------------------------------------


def test_json_has_the_promised_keys_and_the_numbers_of_the_view(store):
    found = json.loads(run(store, "planted", "--format", "json").stdout)
    with Catalog(store) as catalog:
        rows = {row["matcher"]: row for row in catalog.query("from answers").to_pylist()}
    assert [one["matcher"] for one in found] == ["cka_unbiased", "direct", "task_loss"]
    for one in found:
        assert list(one) == KEYS
        assert list(one["checks"]) == list(CHECKS)
        row = rows[one["matcher"]]
        assert {name: one[name] for name in KEYS[:-1]} == {name: row[name] for name in KEYS[:-1]}
        assert one["checks"] == {c["name"]: {"passed": c["passed"], "detail": c["detail"]} for c in row["checks"]}


def test_a_person_reads_a_sentence_for_each_answer(store):
    text = run(store).stdout
    assert (
        "b l1 <- a l1 (direct): supported. Its residual is 0.1, 95 % interval 0.09 to 0.11 (lower is more similar); "
        "next best l0; margin 0.2, 95 % interval 0.189 to 0.211; untrained twin reaches 0.8; "
        "p with shuffled images 0.0244." in text
    )
    assert "b l1 <- a l1 (task_loss): weak." in text
    assert "    not known: above_shuffled\n" in text
    assert "What to add" not in text


def test_what_failed_is_told_below_its_answer(tmp_path):
    planted = changed(plain(), valued(variance_ratio=0.1), where=is_best)
    lines = run(planted.write(tmp_path), "--matcher", "direct").stdout.splitlines()
    assert lines[0] == "planted:"
    assert lines[1].startswith("b l1 <- a l1 (direct): weak. ")
    assert lines[2].startswith("    not_collapsed: Stitched rows have 0.1 of the variance")


def test_csv_markdown_and_parquet_hold_the_same_answers(store, tmp_path):
    rows = list(csv.DictReader(io.StringIO(run(store, "--format", "csv").stdout)))
    assert [list(row) for row in rows] == [KEYS] * 3
    assert json.loads(rows[1]["checks"])["sound"] == {"passed": True, "detail": "Nothing is flagged."}
    run(store, "--format", "parquet", "--out", str(tmp_path / "a.parquet"))
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == KEYS
    assert table["checks"].to_pylist()[1]["undenied"]["passed"] is None
    markdown = run(store, "--format", "markdown").stdout.splitlines()
    assert markdown[0] == f"| {' | '.join(KEYS)} |"
    assert markdown[-1].endswith("| weak | not computed: above_shuffled |")
    run(store, "--out", str(tmp_path / "a.txt"))
    assert (tmp_path / "a.txt").read_text() == run(store).stdout


def test_answers_of_several_seeds_and_sweeps_are_told_apart(tmp_path, seeds):
    found = json.loads(run(seeds, "--format", "json").stdout)
    assert list(found[0]) == ["seed", *KEYS]
    assert {one["seed"] for one in found if one["matcher"] == "task_loss"} == {0, 1}
    assert " (task_loss, seed 1): " in run(seeds).stdout
    first = plain().write(tmp_path)
    replace(plain(), sweep="second").write(tmp_path)
    both = json.loads(run(first, "--format", "json").stdout)
    assert [one["sweep"] for one in both] == ["planted", "planted", "second", "second"]
    assert "sweep" not in json.loads(run(first, "second", "--format", "json").stdout)[0]
    assert run(first).stdout.count("\nb l1 <- a l1 (direct): supported.") == 2


def test_samples_tell_matchers_of_one_kind_apart(tmp_path):
    planted = plain()
    more = [replace(cell, num_fit=500) for cell in planted.cells if cell.matcher == "direct"]
    store = replace(planted, cells=[*planted.cells, *more]).write(tmp_path)
    assert "(direct, samples 500): supported" in run(store).stdout
    found = json.loads(run(store, "--format", "json", "--matcher", "direct").stdout)
    assert [one["samples"] for one in found] == [200, 500]
    with Catalog(store) as catalog:
        names = catalog.query("from pairs").column_names
    assert {"direct (samples 200).residual", "direct (samples 500).residual", "cka_unbiased.cka_unbiased"} <= set(names)


# What is asked for ----------------------------------------------------------------------------------------------------


def test_answers_are_chosen_by_target_source_and_matcher(seeds):
    def chosen(*arguments):
        return json.loads(run(seeds, "planted", *arguments, "--format", "json").stdout)

    everything = chosen()
    some = chosen("--target", "b:l2", "--source", "a", "--matcher", "direct", "--matcher", "pwcca")
    assert [one["matcher"] for one in some] == ["direct", "pwcca"]
    assert some == [
        {name: one[name] for name in KEYS}
        for one in everything
        if (one["target_model"], one["target_layer"], one["source_model"]) == ("b", "l2", "a")
        and one["matcher"] in ("direct", "pwcca")
    ]
    assert {one["target_layer"] for one in chosen("--target", "b")} == set(LAYERS)
    assert {one["source_model"] for one in everything} == {"a", "b"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plante"], "no planned sweep 'plante' in the store; did you mean 'planted'"),
        (["--target", "c"], "no target network 'c' among the compared cells; known: b."),
        (["--target", "c:l1"], "no target network 'c' among the compared cells; known: b."),
        (["--target", "b:l9"], "no layer 'l9' of network 'b' among the compared cells; did you mean 'l1'"),
        (["--source", "b"], "no source network 'b' among the compared cells; known: a."),
        (["--source", f"a{TWIN}"], f"no source network 'a{TWIN}' among the compared cells; known: a."),
        (["--matcher", "dirct"], "no matcher 'dirct' among the compared cells; did you mean 'direct'"),
        (["--out", "nowhere/a.txt"], "cannot write nowhere/a.txt"),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_the_nearest(store, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in run(store, *arguments, code=2).stderr


def test_stores_without_answers_say_what_to_do(tmp_path):
    empty = Store.open(tmp_path / "empty", create=True)
    assert run(empty).stdout == "The store holds no planned sweep: launch a job first.\n"
    assert json.loads(run(empty, "--format", "json").stdout) == []
    planned = changed(plain(), lambda cell: replace(cell, values={"residual": None}), where=lambda c: False)
    bare = replace(
        planned, cells=[replace(c, values={c.score: None}, replicates=None, null=None) for c in plain().cells]
    )
    assert run(bare.write(tmp_path / "bare")).stdout == (
        "planted: no answers yet; 'stitchgrid resume planted' computes what is missing.\n"
    )


# What to add ----------------------------------------------------------------------------------------------------------


def added(store, *arguments):
    _, _, told = run(store, *arguments).stdout.partition("What to add to the job, so that more checks are computed:\n")
    return [line.strip().partition("  ")[0] for line in told.splitlines()]


def test_a_job_of_before_is_told_once_what_to_add(tmp_path):
    assert added(make_synthetic_store(tmp_path).store) == [
        "[controls] untrained = true",
        "[controls] shuffled = 40",
        "[intervals] groups = 20",
        '[diagnostics] ood = ["mahalanobis"]',
    ]


@pytest.mark.parametrize(
    ("lacking", "wanted"),
    [
        ("direct", ['[[matchers]] kind = "direct"']),
        ("cka_unbiased", ['[[matchers]] kind = "cka_unbiased"']),
        ("few draws", ["[controls] shuffled = 40"]),
        ("evidence", ["stitchgrid resume planted"]),
    ],
)
def test_what_is_missing_is_named(tmp_path, lacking, wanted):
    planted = plain("task_loss")
    if lacking in ("direct", "cka_unbiased"):
        planted = replace(planted, cells=[cell for cell in planted.cells if cell.matcher != lacking])
    elif lacking == "few draws":
        planted = replace(planted, info={"groups": 8, "shuffles": 9})
    else:
        planted = changed(planted, lambda cell: replace(cell, replicates=None), where=is_best)
    assert added(planted.write(tmp_path)) == wanted


def test_networks_without_classes_are_asked_for_nothing(tmp_path):
    bare = {"head": "embedding", "accuracy": None, "chance": None, "is_at_chance": None}
    text = run(with_networks(plain(), a=bare, b=bare).write(tmp_path)).stdout
    assert "not known" not in text
    assert "(direct): supported" in text


# Pairs ----------------------------------------------------------------------------------------------------------------


def test_pairs_have_a_row_for_each_layer_pair_and_a_column_for_each_matcher_and_metric(tmp_path):
    planted = drawn(5, keep=0.9)
    with Catalog(planted.write(tmp_path)) as catalog:
        table = catalog.query("from pairs order by all")
    place = ["sweep", "source_model", "source_layer", "source_index", "source_depth"]
    place += ["target_model", "target_layer", "target_index", "target_depth"]
    assert table.column_names[:9] == place
    assert table.column_names[9:13] == [
        *("direct.residual", "direct.variance_ratio", "direct.ood_mahalanobis_auroc", "direct.ood_energy_auroc")
    ]
    expected: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for cell in planted.cells:
        for metric, value in cell.values.items():
            if value is not None and "diverged" not in cell.flags:
                found = expected.setdefault(cell.pair, {})
                found.setdefault(f"{cell.matcher}.{metric}", []).append(value)
    rows = table.to_pylist()
    assert len(rows) == len(expected)
    for row in rows:
        pair = tuple(row[name] for name in ("source_model", "source_layer", "target_model", "target_layer"))
        means = {name: sum(values) / len(values) for name, values in expected[pair].items()}
        assert {name: row[name] for name in table.column_names[9:] if row[name] is not None} == pytest.approx(means)


def test_pairs_of_several_sweeps_share_columns_of_one_label(tmp_path):
    plain().write(tmp_path)
    other = replace(plain(), sweep="other", cells=[replace(cell, num_fit=999) for cell in plain().cells])
    with Catalog(other.write(tmp_path)) as catalog:
        table = catalog.query('select sweep, "direct.residual" as value from pairs order by all')
        assert "direct (samples 999).residual" not in catalog.query("from PAIRS limit 0").column_names
        assert "pairs" in [row["name"] for row in catalog.query("show tables").to_pylist()]
    values = table["value"].to_pylist()
    assert None not in values
    assert values[:8] == values[8:]


def test_names_from_a_store_make_columns_and_nothing_else(tmp_path):
    params = ['{"x":"a\\"; drop view results; --"}', '{"y":"no JSON"}', '{"x":"A"}', '{"x":"a"}']
    cells = [replace(cell, params=text) for text in params for cell in plain().cells if cell.matcher == "direct"]
    with Catalog(Planted(cells=cells).write(tmp_path)) as catalog:
        names = catalog.query("from pairs").column_names[9:]
        assert catalog.query("from results").num_rows > 0
    residuals = [name for name in names if name.endswith(".residual") or ".residual (" in name]
    assert len(residuals) == len(params)
    assert any("drop view results" in name for name in residuals)


def test_an_empty_store_has_no_pairs(tmp_path):
    with Catalog(Store.open(tmp_path, create=True)) as catalog:
        assert catalog.query("from pairs").num_rows == 0
