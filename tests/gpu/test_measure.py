"""The script that measures a GPU, rehearsed without one: every question stands alone."""

import json

import measure
import pytest
import torch


@pytest.fixture
def questions(monkeypatch):
    def fails(grid):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(measure, "QUESTIONS", (measure.machine, fails, measure.host_waits, measure.fit))
    monkeypatch.setattr(measure, "PRECISIONS", ("fp32",))


def told(tmp_path, *arguments):
    out = tmp_path / "gpu.json"
    status = measure.main(["--out", str(out), *arguments])
    return status, json.loads(out.read_text("utf-8"))


def test_a_question_that_fails_costs_no_other(tmp_path, questions):
    status, found = told(tmp_path)
    assert status == 1
    assert found["is_rehearsal"]
    assert found["fails"]["error"] == "RuntimeError: out of luck"
    assert found["fit"]["fp32"]["flops_per_second"] > 0
    assert found["host_waits"]["skipped"]


def test_what_finds_no_time_says_so(tmp_path, questions):
    status, found = told(tmp_path, "--minutes", "0")
    assert status == 0
    assert found["fit"] == {"skipped": "no time was left"}


def test_how_the_tests_of_values_ended_is_told(tmp_path, questions):
    junit = tmp_path / "tests.xml"
    junit.write_text(
        '<testsuites><testsuite tests="2" failures="1" errors="0" skipped="0"><testcase name="right"/>'
        '<testcase name="wrong"><failure/></testcase></testsuite></testsuites>'
    )
    status, found = told(tmp_path, "--minutes", "0", "--tests", str(junit))
    assert status == 1
    assert found["tests"] == {"tests": 2, "failures": 1, "errors": 0, "skipped": 0, "failed": ["wrong"]}
