"""The CPUs that a process may use: its affinity, its container's quota, its share of a job."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from betasigma.cpus import ON_NODE, PER_TASK, cpus_of_a_process, usable_cpus


@pytest.fixture(autouse=True)
def sixteen(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    for name in (PER_TASK, ON_NODE):
        monkeypatch.delenv(name, raising=False)


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, content in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {}, 16),
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, 16),
        ("0::/", {"sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        ("0::/", {"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),  # one thread leaves half a CPU
        ("0::/", {"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ("0::/", {"sys/fs/cgroup/cpu.max": "6400000 100000"}, 16),
        ("0::/a/b", {"sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3),  # an ancestor's holds too
        (
            "0::/a/b",
            {
                "sys/fs/cgroup/a/b/cpu.max": "800000 100000",
                "sys/fs/cgroup/a/cpu.max": "500000 100000",
            },
            5,
        ),
        (
            "5:cpu,cpuacct:/docker/1f\n3:memory:/docker/1f",
            {  # inside a container its own group is the root
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            "5:cpu:/",
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            16,
        ),
    ],
)
def test_the_quota_of_a_control_group_counts(tmp_path, groups, files, expected):
    assert usable_cpus(system(tmp_path, groups, files)) == expected


def test_a_system_without_control_groups_has_its_affinity(tmp_path):
    assert usable_cpus(tmp_path) == 16


@pytest.mark.parametrize(
    ("slurm", "processes", "expected"),
    [
        ({}, 1, 16),
        ({}, 4, 4),
        ({}, 32, 1),
        ({PER_TASK: "3"}, 2, 3),  # counted by the process already
        ({PER_TASK: "64"}, 2, 16),
        ({ON_NODE: "6"}, 1, 6),  # and nothing keeps the job off the other ten
        ({ON_NODE: "6"}, 2, 3),
        ({PER_TASK: "3", ON_NODE: "6"}, 2, 3),
    ],
)
def test_processes_share_the_cpus_that_slurm_gave(monkeypatch, slurm, processes, expected):
    monkeypatch.setattr("betasigma.cpus.usable_cpus", lambda: 16)
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert cpus_of_a_process(processes) == expected
