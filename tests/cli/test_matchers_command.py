import json

import pytest
from click.testing import CliRunner

from stitchgrid.cli import cli
from stitchgrid.matchers.registry import MATCHERS


def told(*words: str) -> str:
    found = CliRunner().invoke(cli, ["matchers", *words])
    assert found.exit_code == 0, found.output
    return found.output


def test_each_kind_is_one_line_with_its_score_and_summary():
    lines = told().splitlines()
    assert len(lines) == len(MATCHERS)
    for name, about in MATCHERS.items():
        [line] = [line for line in lines if line.split()[0] == name]
        assert about.family in line
        assert f"{about.score} {about.metric(about.score).better}" in line
        assert about.summary in line


@pytest.mark.parametrize("kind", MATCHERS)
def test_a_kind_tells_all_that_a_user_can_set_and_read(kind):
    about, text = MATCHERS[kind], told(kind)
    for name in about.params.model_fields:
        assert f"  {name} = " in text
    for metric in about.metric_names:
        assert f"  {metric}: " in text
    assert about.source in text
    assert f"bias: {about.bias}" in text
    assert f"not when: {about.not_when}" in text
    assert ("trained: by seeds" in text) == about.is_trained


def test_ranges_and_needs_are_in_words():
    assert "ranks layers by: procrustes lower [0, 2]" in told("procrustes")
    assert "order of the layers: does not matter" in told("cka")
    assert "images: 1,000 of the evaluation images unless `samples` says otherwise" in told("cka")
    assert [line for line in told("cka_unbiased").splitlines() if line.startswith("images: ")] == [
        "images: 1,000 of the evaluation images unless `samples` says otherwise; 4 at least"
    ]
    assert "widths: the target must be as wide as the source at least" in told("orthogonal")
    assert "trained: by seeds, without labels" in told("soft_label")
    assert "  r2: higher is more similar <= 1" in told("direct")


def test_json_is_a_record_of_each_kind():
    records = json.loads(told("--format", "json"))
    assert [record["kind"] for record in records] == list(MATCHERS)
    [cka] = json.loads(told("cka", "--format", "json"))
    assert cka["metrics"] == [{"name": "cka", "higher_is_similar": True, "low": 0.0, "high": 1.0, "on_request": False}]
    assert cka["symmetric"] is True


def test_an_unknown_kind_is_refused_with_the_nearest():
    found = CliRunner().invoke(cli, ["matchers", "pwca"])
    assert found.exit_code == 2
    assert "there is no matcher 'pwca'" in found.output
    assert "pwcca" in found.output
