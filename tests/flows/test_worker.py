"""What a worker finds missing before its first unit, and what it does not write."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_engine import make_sweep, matcher, trained_zoo, whole_shard, workspace

from stitchgrid.engine import host
from stitchgrid.errors import InputError
from stitchgrid.matchers.stitchers.direct import Direct
from stitchgrid.records import DataSpec, Sweep
from stitchgrid.store import Store
from stitchgrid.worker import Worker


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    Store.open(tmp_path / "grid", create=True)
    return Worker(store=str(tmp_path / "grid"), device="cpu", threads=1)


@pytest.fixture
def sweep() -> Sweep:
    return make_sweep(trained_zoo(), [("conv", "view")], [matcher("direct"), matcher("cka")])


def test_a_worker_keeps_freed_memory_and_says_whether_it_could(tmp_path, monkeypatch, sweep):
    Store.open(tmp_path / "grid", create=True)
    for answer, said in ((True, "freed memory kept"), (False, "freed memory given back")):
        monkeypatch.setattr(host, "keep_freed_memory", lambda answer=answer: answer)
        assert Worker(store=str(tmp_path / "grid"), device="cpu", threads=1).settings(sweep)[-1] == said


def test_a_worker_computes_in_tf32_only_where_a_job_asks_for_it(tmp_path):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    Worker(store=Store.open(tmp_path / "grid", create=True).uri, device="cpu", threads=1)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_images_that_are_not_there_are_missed_before_any_unit(worker, sweep):
    lost = replace(sweep, data=DataSpec(dataset="imagefolder", root="/nowhere/images"))
    with pytest.raises(InputError, match="/nowhere/images"):
        worker.check(lost)


def test_other_images_than_planned_are_noticed_before_any_unit(worker, sweep):
    with pytest.raises(InputError, match="are not those the sweep was planned with"):
        worker.check(replace(sweep, data=DataSpec(dataset="digits"), need_fit=None))


def test_a_shard_that_loses_the_device_leaves_nothing_in_the_store(worker, sweep, monkeypatch):
    work = workspace(trained_zoo(), sweep)
    monkeypatch.setattr(worker, "workspace", lambda _: work)

    def lose_device(*_, **__):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Direct, "fit", lose_device)
    with pytest.raises(torch.AcceleratorError):
        worker.run(whole_shard(sweep), sweep)
    assert not list(Path(worker.store.uri).rglob("*.parquet"))
