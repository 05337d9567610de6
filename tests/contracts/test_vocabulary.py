"""One word, one thing: classes, words not to use, and sizes of modules."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

import stitchgrid

PACKAGE = Path(stitchgrid.__file__).parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}

#: Words that readers took for other things, as names in the code, each with the one that is used.
NOT_USED = {
    "catalogue": "registry (beside the package `catalog`)",
    "errand": "remote call",
    "floor": "dispatch",
    "laying": "resampling",
    "misled": "misleading",
    "ours": "source, or what it is",
    "prints": "hashes (of cell ids)",
    "pulse": "heartbeat",
    "theirs": "target, or what it is",
    "trying": "speed trial",
    "upkeep": "auto compaction",
}
#: Phrases that readers had to read twice, in any text of the code, each with the one that is used.
NOT_SAID = {
    "came to nothing": "diverged",
    "did not suffice": "ran out (of memory)",
    "does not suffice": "runs out (of memory)",
    "tells T(A) from B": "separates T(A) from B",
    "told apart": "distinguished",
}
#: Modules of fewer than 40 lines that stand alone all the same: what they say is said nowhere else.
SMALL = {
    "bench/hook_script.py": "a script that users may read",
    "bench/launch_script.py": "a script for a process of its own",
    "bench/pytorch_cka_script.py": "a script that users may read",
    "allocator.py": "a setting of the process, made before anything else",
    "api/torch_settings.py": "a context around sessions of users",
    "atlas/provenance.py": "one part of a page",
    "cli/__main__.py": "an entry point",
    "cluster/worker_failures.py": "what errors of Ray mean",
    "cpus.py": "affinity and limits of containers",
    "datasets/natural_order.py": "an order of names that two kinds of data sets share",
    "datasets/notices.py": "sentences about images",
    "driver/auto_compaction.py": "work beside a launch",
    "driver/missing_artefacts.py": "what a plan and a launch both ask",
    "jobfile/naming.py": "names of networks that one entry makes",
    "jobfile/parse/earlier.py": "jobs of earlier versions",
    "limits.py": "what is too much, for all readers of files",
    "manual/__main__.py": "an entry point",
    "matchers/divergence.py": "a rule that several stitchers share",
    "matchers/span.py": "a rule that several stitchers share",
    "models/user_forward.py": "a guard around users' code",
    "models/versions.py": "versions that decide values",
    "moments/arithmetic.py": "rounding, for all moments",
    "records/addresses.py": "digests, for all addresses",
    "shipped_files.py": "where shipped files lie",
    "store/damage.py": "what readers do with damage",
    "store/limits.py": "limits of files of a store",
}
LARGE = {"store/documents.py": "every kind of JSON document of a store, one after the other"}
ONE_A_KIND = re.compile(r"reference/|matchers/(indices|stitchers)/|models/nets/|__init__\.py$")
FEWEST, MOST = 40, 360  # lines


def names_in(tree):
    """Yield what the code of a module calls things: variables, arguments, attributes, functions, classes."""
    for node in ast.walk(tree):
        for field in ("id", "arg", "attr", "name", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


NAMES = {name: frozenset(names_in(tree)) for name, tree in TREES.items()}


def test_no_two_classes_have_one_name():
    found = defaultdict(list)
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(name)
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


@pytest.mark.parametrize("word", NOT_USED)
def test_a_word_that_misleads_is_no_name(word):
    forms = {word, f"_{word}", word.upper(), word.capitalize()}
    numeric = {"floor", "FLOOR"}  # of numbers
    used = {name: found for name, names in NAMES.items() if (found := forms & names - numeric)}
    used |= {name: {word} for name in SOURCES if Path(name).stem == word}
    assert used == {}, f"instead of {word!r}: {NOT_USED[word]}"


@pytest.mark.parametrize("phrase", NOT_SAID)
def test_a_phrase_that_is_read_twice_is_not_said(phrase):
    said = {name for name, text in SOURCES.items() if phrase.lower() in " ".join(text.split()).lower()}
    assert said == set(), f"instead of {phrase!r}: {NOT_SAID[phrase]}"


def test_modules_are_neither_tiny_nor_huge_without_a_reason():
    lines = {name: text.count("\n") for name, text in SOURCES.items()}
    small = {name for name, num in lines.items() if num < FEWEST and not ONE_A_KIND.search(name)}
    assert small == SMALL.keys()
    assert {name for name, num in lines.items() if num > MOST} == LARGE.keys()
