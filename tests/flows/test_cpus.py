"""CPUs that a process may use: affinity and a container's quota."""

import os

import pytest

from stitchgrid import cpus


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "50000 100000\n"}, 1),  # half a CPU
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "9900000 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu.max": "nonsense"}, 64),
    ],
)
def test_a_containers_quota_counts_as_whole_cpus(tmp_path, monkeypatch, files, wanted):
    monkeypatch.setattr(cpus, "GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpus.num_cpus() == wanted


def test_affinity_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(cpus, "GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert cpus.num_cpus() == 1
