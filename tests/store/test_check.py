"""Damage of every file of a store: what check says, what repair moves, what readers then see."""

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from helpers_store import SWEEP, make_row, make_synthetic_store, plan_tables, planned_cells

from stitchgrid.catalog import Catalog
from stitchgrid.cli import cli
from stitchgrid.errors import StoreError
from stitchgrid.store import Store, schemas
from stitchgrid.store.layout import PartName, content_digest
from stitchgrid.store.parts import parquet_bytes, part_table

CELL = next(iter(planned_cells()))
REVISION = f"sweeps/{SWEEP}/0001"


@pytest.fixture
def store(tmp_path):
    store = make_synthetic_store(tmp_path / "grid").store
    store.write_artefact("network", "k" * 32, b"weights")
    store.write_heartbeat(SWEEP, {"at": "2026-11-24T00:00:00+00:00", "running": []})
    return store


def files_of(store):
    return sorted(str(p.relative_to(store.uri)) for p in Path(store.uri).rglob("*") if p.is_file())


def first_part(store):
    return next(name for name in files_of(store) if name.startswith("parts/"))


def artefact(store):
    return next(name for name in files_of(store) if name.endswith(".safetensors"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def run(store, *arguments):
    return CliRunner().invoke(cli, ["check", "--store", store.uri, *arguments])


KINDS = {
    "part": first_part,
    "artefact": artefact,
    "manifest": lambda _: f"artefacts/network/{'k' * 32}.manifest",
    "job": lambda _: f"{REVISION}/job.json",
    "plan": lambda _: f"{REVISION}/plan.json",
    "cells": lambda _: f"{REVISION}/cells.parquet",
    "models": lambda _: f"{REVISION}/models.parquet",
    "layers": lambda _: f"{REVISION}/layers.parquet",
    "journal": lambda _: f"sweeps/{SWEEP}/journal/launch-1/000001.json",
    "heartbeat": lambda _: f"sweeps/{SWEEP}/heartbeat.json",
}


def test_a_sound_store_is_sound(store):
    report = store.check()
    assert report.findings == ()
    assert report.num_files == len(files_of(store))
    found = run(store)
    assert (found.exit_code, found.stdout) == (0, f"{report.num_files} files verified: all sound\n")


@pytest.mark.parametrize("damage", [truncate, empty])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_set_aside_and_gone(store, kind, damage):
    name = KINDS[kind](store)
    damage(Path(store.uri) / name)
    before = files_of(store)
    [finding] = store.check().damage
    assert finding.file == name
    assert finding.problem
    assert "resume" in finding.advice or "launch" in finding.advice or "nothing" in finding.advice
    found = run(store)
    assert found.exit_code == 1
    assert f"DAMAGED  {name}\n" in found.stdout
    assert "1 damaged" in found.stdout
    assert files_of(store) == before
    found = run(store, "--repair")
    assert found.exit_code == 0
    assert f"set aside as set-aside/{name}\n" in found.stdout
    assert not (Path(store.uri) / name).exists()
    assert len(files_of(store)) == len(before)
    assert store.check().damage == ()
    assert run(store).exit_code == 0


@pytest.mark.parametrize("kind", ["part", "artefact", "cells", "models", "layers"])
def test_one_flipped_bit_is_found(store, kind):
    flip(Path(store.uri) / KINDS[kind](store))
    assert [one.file for one in store.check().damage] == [KINDS[kind](store)]


@pytest.mark.parametrize("damage", [truncate, empty, flip])
@pytest.mark.parametrize("kind", ["part", "cells", "plan", "journal", "heartbeat", "job", "artefact"])
def test_readers_go_on_without_what_is_damaged_and_say_so(store, kind, damage):
    path = Path(store.uri) / KINDS[kind](store)
    damage(path)
    for command in (["status"], ["query", "progress"], ["sql", "select count(*) from results"]):
        found = CliRunner().invoke(cli, [*command, "--store", store.uri])
        assert found.exit_code == 0, found.output
        assert ("left out" in found.stderr) == (kind in ("part", "cells", "plan")), found.stderr
    assert json.loads(run(store, "--format", "json").stdout)["findings"] or kind in ("journal", "heartbeat", "job")


def test_a_damaged_table_takes_its_revision_with_it_and_the_next_launch_writes_it_again(store):
    flip(Path(store.uri) / f"{REVISION}/layers.parquet")
    store.set_aside(store.check())
    assert files_of(store) == sorted(set(files_of(store)))
    assert [n for n in files_of(store) if n.startswith(REVISION)] == [f"{REVISION}/job.json"]
    assert store.read_plan(SWEEP) is None
    store.write_plan(SWEEP, 1, **plan_tables(), info={})
    assert store.read_plan(SWEEP).cells.num_rows == 216


def test_a_sweep_whose_job_is_set_aside_still_answers(store):
    empty(Path(store.uri) / f"{REVISION}/job.json")
    store.set_aside(store.check())
    assert store.sweep_names() == [SWEEP]
    assert store.write_job(SWEEP, {"job": {}}) == 2, "the first revision was planned for another job"
    assert store.write_job(SWEEP, {"job": {"name": SWEEP}, "base": "."}) == 3
    shutil.rmtree(Path(store.uri) / f"sweeps/{SWEEP}/0002")
    shutil.rmtree(Path(store.uri) / f"sweeps/{SWEEP}/0003")
    assert store.write_job(SWEEP, {"job": {"name": SWEEP}, "base": "."}) == 1
    with Catalog(store) as catalog:
        assert catalog.sweeps == (SWEEP,)


def changed(store, file, before, after):
    path = Path(store.uri) / f"{REVISION}/{file}"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_a_job_that_is_not_the_one_of_its_plan_is_damage(store):
    changed(store, "job.json", '"base": "."', '"base": "/"')
    [found] = store.check().damage
    assert (found.file, found.problem) == (f"{REVISION}/job.json", "it is not the job that plan.json was made for")
    assert found.goes_with == ()
    with pytest.raises(
        StoreError, match=r"job.json in the store .* is damaged: it is not the job that plan.json was made"
    ):
        store.read_job(SWEEP)
    other = Store.open(Path(store.uri).parent / "other", create=True)
    [told] = other.merge([store]).stores
    assert [one.file for one in told.damaged] == [f"{REVISION}/job.json"]
    assert not (Path(other.uri) / f"{REVISION}/job.json").exists()
    assert other.read_plan(SWEEP).cells.num_rows == 216


def test_a_changed_number_in_a_plan_is_damage(store):
    changed(store, "plan.json", '"num_shards": 4', '"num_shards": 5')
    [found] = store.check().damage
    assert found.file == f"{REVISION}/plan.json"
    assert "content differs from the digest in it" in found.problem
    with pytest.raises(StoreError, match="content differs from the digest in it"):
        store.read_plan_info(SWEEP)


def test_plans_of_earlier_versions_have_no_digest_of_their_job(store):
    path = Path(store.uri) / f"{REVISION}/plan.json"
    plan = json.loads(path.read_text())
    assert {"job", "digest"} <= plan.keys()
    path.write_text(json.dumps({key: value for key, value in plan.items() if key not in ("job", "digest")}))
    changed(store, "job.json", '"base": "."', '"base": "/"')
    assert store.read_job(SWEEP)["base"] == "/"
    assert store.read_plan_info(SWEEP) == {"num_shards": 4}
    assert [one for one in store.check().findings if one.is_damage and REVISION in one.file] == []


def test_a_damaged_artefact_goes_with_its_manifest_and_is_made_anew(store):
    flip(Path(store.uri) / artefact(store))
    assert len(store.set_aside(store.check()).moved) == 2
    assert not store.has_artefact("network", "k" * 32)
    assert store.write_artefact("network", "k" * 32, b"weights")
    assert store.read_artefact("network", "k" * 32) == b"weights"


def test_what_was_set_aside_before_is_kept(store):
    name = f"sweeps/{SWEEP}/heartbeat.json"
    for content in (b"{", b"[", b"["):
        (Path(store.uri) / name).write_bytes(content)
        store.set_aside(store.check())
    kept = [n for n in files_of(store) if n.startswith("set-aside/")]
    assert kept == [f"set-aside/{name}", f"set-aside/{name}.2"]


def test_what_does_not_belong_is_harmless(store):
    root = Path(store.uri)
    for name in ("parts/v1/notes.txt", "parts/v1/copy.parquet", "parts/v1/.s.parquet.ab.partial", f"{REVISION}/x"):
        (root / name).write_bytes(b"mine")
    (root / f"artefacts/network/{'k' * 32}-{'0' * 32}.safetensors").write_bytes(b"loser's")
    report = store.check()
    assert report.damage == ()
    assert len(report.findings) == 5
    found = run(store, "--repair")
    assert found.exit_code == 0
    assert found.stdout.count("harmless") == 5
    assert not (root / "set-aside").exists()


def write_part(store, table):
    data = parquet_bytes(table)
    name = PartName(shard="s", digest=content_digest(data), num_rows=table.num_rows)
    store.files.replace(f"parts/v1/{name}", data)


def test_a_column_of_a_later_version_is_ignored(tmp_path):
    store = Store.open(tmp_path, create=True)
    write_part(store, part_table([make_row(CELL, "accuracy", 0.5)]).append_column("later", pa.array(["x"])))
    assert store.check().findings == ()
    assert store.read_parts().table["value"].to_pylist() == [0.5]
    assert "later" not in store.read_parts().table.column_names


def test_a_column_that_came_later_is_null_in_older_parts(tmp_path, monkeypatch):
    store = Store.open(tmp_path, create=True)
    table = part_table([make_row(CELL, "accuracy", 0.5)])
    write_part(store, table.drop_columns(["alignment", "seconds"]).replace_schema_metadata({"stitchgrid.part": "1"}))
    assert "lacks the columns ['alignment', 'seconds']" in store.check().damage[0].problem
    added = {"alignment": 2, "seconds": 2}
    monkeypatch.setattr(schemas, "ADDED", added)
    assert store.check().findings == ()
    assert store.read_parts().table.select(["alignment", "seconds", "value"]).to_pylist() == [
        {"alignment": None, "seconds": None, "value": 0.5}
    ]
    write_part(store, table.drop_columns(["seconds"]).replace_schema_metadata({"stitchgrid.part": "2"}))
    assert "lacks the columns ['seconds']" in store.check().damage[0].problem


FILL = """
import resource, signal, sys
from dataclasses import replace
from helpers_store import make_row, planned_cells
from stitchgrid.errors import StoreError
from stitchgrid.store import Store
store = Store.open(sys.argv[1])
CELL = next(iter(planned_cells()))
rows = [make_row(CELL, "accuracy", n / 7) for n in range(216)]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    store.write_part("s", rows)
except StoreError as problem:
    print(problem)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(len(store.part_paths()), len(store.files.strangers()))
store.write_part("s", rows)
print(len(store.read_parts().table))
"""


def test_a_write_that_finds_no_room_leaves_nothing_and_can_be_repeated(tmp_path):
    store = Store.open(tmp_path, create=True)
    command = [sys.executable, "-c", FILL, store.uri]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1] / "helpers")
    message, counts, num_rows = out.stdout.splitlines()
    assert "cannot write" in message
    assert "File too large" in message
    assert "check free space" in message
    assert (counts, num_rows) == ("0 0", "216")
    assert store.check().findings == ()


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "stitchgrid-test", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield folder
    gc.collect()  # stores that were opened hold their folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path):
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 512)


def test_a_full_disk_costs_the_part_alone(small_disk):
    store = Store.open(small_disk / "grid", create=True)
    rows = [make_row(CELL, "accuracy", n / 7) for n in range(216)]
    kept = [store.write_part("kept", rows)]
    fill(small_disk / "filler")
    with pytest.raises(StoreError, match=r"cannot write .*No space left on device; check free space"):
        store.write_part("lost", [replace(row, value=0.25) for row in rows])
    assert [path.name for path in store.part_paths()] == kept
    assert store.check().findings == ()
    (small_disk / "filler").unlink()
    store.write_part("lost", [replace(row, value=0.25) for row in rows])
    assert len(store.part_paths()) == 2


def test_a_read_only_disk_can_be_checked_but_not_repaired(small_disk):
    store = Store.open(small_disk / "grid", create=True)
    store.write_part("s", [make_row(CELL, "accuracy", 0.5)])
    empty(store.part_paths()[0])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert run(store).exit_code == 1
    found = run(store, "--repair")
    assert found.exit_code == 1
    assert "cannot write writable in the store" in found.stderr
    assert "Read-only file system" in found.stderr
    assert CliRunner().invoke(cli, ["status", "--store", store.uri]).exit_code == 0


def test_a_store_that_turns_read_only_says_so(store, monkeypatch):
    flip(Path(store.uri) / first_part(store))

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match=r"cannot write .*Read-only file system; check free space and permissions"):
        store.set_aside(store.check())


def test_a_file_that_cannot_be_moved_is_reported(store, monkeypatch):
    name = first_part(store)
    empty(Path(store.uri) / name)
    read = type(store.files).read

    def fail(files, asked, *limits):
        if asked == name:
            raise StoreError("the disk is dying")
        return read(files, asked, *limits)

    monkeypatch.setattr(type(store.files), "read", fail)
    found = run(store, "--repair")
    assert found.exit_code == 1
    assert "could not set aside: the disk is dying" in found.stdout
