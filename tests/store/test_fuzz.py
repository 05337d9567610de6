"""Stores changed at random: readers end in words, touch nothing outside, and repair leaves no wrong number."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 150


def run(first, num):
    """Run rounds in a process of little memory."""
    line = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "fuzz_store.py"), str(first), str(num)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert done.stdout == f"0 of {num}\n"


def test_changed_stores_are_answered_with_words():
    run(0, ROUNDS)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_very_many_changed_stores_are_answered_with_words():
    """A hundred thousand rounds, or as many as STITCHGRID_FUZZ_ROUNDS says, from seed STITCHGRID_FUZZ_FIRST on."""
    run(int(os.environ.get("STITCHGRID_FUZZ_FIRST", "1000")), int(os.environ.get("STITCHGRID_FUZZ_ROUNDS", "100000")))
