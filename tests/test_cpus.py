"""The CPUs that a process may use: its affinity, its container's quota, its share of a job, and
what other processes leave of them.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from betasigma import cpus, devices
from betasigma.commands import sample
from betasigma.cpus import (
    ON_NODE,
    PER_TASK,
    THREADS_OF_USER,
    Look,
    cpus_of_a_process,
    idle_cpus,
    look_for_idle_cpus,
    usable_cpus,
)
from betasigma.data import image_files, image_sets
from betasigma.data.file_tree import Files
from betasigma.data.listing import Listed
from betasigma.devices import Following, move_to_device, use_threads


@pytest.fixture(autouse=True)
def sixteen(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    for name in (PER_TASK, ON_NODE, *THREADS_OF_USER):
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


def test_images_are_read_and_written_by_as_many_threads_as_slurm_gave_cpus(tmp_path, monkeypatch):
    begun: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, threads: int) -> None:
            begun.append(threads)
            super().__init__(threads)

    for module in (image_files, sample):
        monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr("betasigma.cpus.usable_cpus", lambda: 16)
    monkeypatch.setenv(PER_TASK, "3")
    folder = sample.SampleFolder(tmp_path / "drawn", {})
    names = tuple(f"{i}.png" for i in range(4))
    folder.write([folder.root / name for name in names], torch.zeros(4, 1, 4, 4).byte())
    assert begun == [3]
    image_sets.open_images(folder.root, "images")
    assert begun == [3, 3, 3]  # for their headers, and for a look at some of them
    listed = Listed(Files(folder.root), names)
    image_files.decode_all(listed, image_files.Decoder((4, 4), 1), "error")
    assert begun == [3, 3, 3, 3]


def machine(root: Path, monkeypatch: pytest.MonkeyPatch, *shares: float) -> Path:
    """A machine whose CPUs are idle for these shares of the time; 0 and 3 are this process's."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    monkeypatch.setattr(cpus, "_idle_at_start", [])
    (root / "proc").mkdir()
    ticks = os.sysconf("SC_CLK_TCK") * cpus.LOOK_SECONDS

    def write(idle: list[float]) -> None:
        lines = [f"cpu{i} 7 0 5 {1000 + round(own)} 3 0 0 0 0 0" for i, own in enumerate(idle)]
        (root / "proc/stat").write_text("\n".join(["cpu 9 9 9 9 9", *lines, "intr 5"]))

    write([0] * len(shares))
    monkeypatch.setattr(time, "sleep", lambda s: write([share * ticks for share in shares]))
    return root


@pytest.mark.parametrize(
    ("idle", "expected"),
    [
        ((1, 1, 1, 1), 2),
        ((0.9, 0, 0, 0.8), 2),  # the others are not for this process
        ((1, 1, 1, 0), 1),
        ((0.6, 1, 1, 0.6), 1),
        ((0, 1, 1, 0), 1),
    ],
)
def test_idle_cpus_are_counted(tmp_path, monkeypatch, idle, expected):
    look_for_idle_cpus(machine(tmp_path, monkeypatch, *idle))
    assert idle_cpus() == expected


QUOTAS = {
    2: ("0::/a", "sys/fs/cgroup/a", {"cpu.max": "200000 100000"}, 1e6),
    1: (
        "5:cpu,cpuacct:/a",
        "sys/fs/cgroup/cpu,cpuacct/a",
        {"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"},
        1e9,
    ),
}
"""Two CPUs in either version: the group, its folder, its limit, and units of its use in a second.
"""


@pytest.mark.parametrize("version", QUOTAS)
@pytest.mark.parametrize(
    ("used", "own", "expected"), [(0, 0, 2), (1, 0, 1), (2, 0, 1), (1, 1, 2), (0.3, 0, 2)]
)
def test_neighbours_within_a_quota_are_seen(tmp_path, monkeypatch, version, used, own, expected):
    """On a machine of 16 CPUs, of which the others are idle."""
    group, folder, limit, units = QUOTAS[version]
    root = machine(tmp_path, monkeypatch, *[1] * 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    write_idle, clock = time.sleep, [7.0]

    def write_used(seconds: float) -> None:
        count = 10**12 + round(seconds * units)
        stat = f"usage_usec {count}\nuser_usec {count}\nnr_periods 0"
        files = {"cpu.stat": stat} if version == 2 else {"cpuacct.usage": str(count)}
        system(root, group, {f"{folder}/{name}": text for name, text in (files | limit).items()})

    def sleep(seconds: float) -> None:
        write_idle(seconds)
        write_used(used * seconds)
        clock[0] += own * seconds

    write_used(0)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "process_time", lambda: clock[0])
    look_for_idle_cpus(root)
    assert min(idle_cpus(), usable_cpus(root)) == expected


def test_what_this_process_does_itself_is_no_neighbour(tmp_path, monkeypatch):
    root = machine(tmp_path, monkeypatch, 0.1, 1, 1, 1)
    clock = iter([7.0, 7.0 + 0.9 * cpus.LOOK_SECONDS])
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    look_for_idle_cpus(root)
    assert idle_cpus() == 2


def test_of_an_unknown_system_all_are_idle(tmp_path, monkeypatch):
    machine(tmp_path, monkeypatch)
    look_for_idle_cpus(tmp_path / "nowhere")
    assert idle_cpus() == 2


HARDWARE = {"threads": None, "devices": 1, "nodes": 1, "accelerator": "cpu", "deterministic": False}


@pytest.mark.parametrize(
    ("words", "begun_with", "expected"),
    [
        ({}, None, 1),
        ({"threads": 4}, None, 4),
        ({"deterministic": True}, None, 2),
        ({}, 2, 2),  # a run goes on as it began, to the same bits
        ({}, 64, 2),  # on a machine that was larger
        ({"devices": 2}, None, 1),
    ],
)
def test_threads_are_as_many_as_cpus_are_idle(tmp_path, monkeypatch, words, begun_with, expected):
    look_for_idle_cpus(machine(tmp_path, monkeypatch, 1, 1, 1, 0))
    why = use_threads({**HARDWARE, **words}, begun_with)
    assert torch.get_num_threads() == expected
    assert (why is not None) == (words == {} and begun_with is None)


def test_what_is_moved_for_sampling_tells_of_its_threads(tmp_path, monkeypatch):
    look_for_idle_cpus(machine(tmp_path, monkeypatch, 1, 1, 1, 0))
    told: list[str] = []
    hardware = {**HARDWARE, "channels_last": False, "strategy": "auto"}
    move_to_device(torch.nn.Identity(), hardware, tell=told.append)
    assert told == ["1 of 2 CPUs, since other processes use the rest; hardware.threads=2 takes all"]


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_threads_of_the_environment_stay(tmp_path, monkeypatch, name):
    look_for_idle_cpus(machine(tmp_path, monkeypatch, 1, 1, 1, 0))
    monkeypatch.setenv(name, "3")
    torch.set_num_threads(3)
    assert use_threads(HARDWARE) is None
    assert torch.get_num_threads() == 3


@pytest.fixture
def looked(tmp_path, monkeypatch):
    """Looks of five seconds at a machine of two CPUs, of which others take those told, a worker of
    this process among them; returns how many threads there are then, and what was said.
    """
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    clock, ticks, idle, own = [0.0], os.sysconf("SC_CLK_TCK"), [0.0, 0.0], [1.0]
    system(tmp_path, "0::/", {"proc/self/task/5/children": "77 "})

    def write() -> None:
        lines = [
            f"cpu{cpu} 7 0 5 {round(i * ticks)} 0 0" for cpu, i in zip((0, 3), idle, strict=True)
        ]
        (tmp_path / "proc/stat").write_text("\n".join(lines))
        spent = f"{round(own[0] * ticks) - 3} 3"
        system(tmp_path, "0::/", {"proc/77/stat": f"77 (a) b) R 1 1 1 0 -1 0 1 1 1 1 {spent} 9 9"})

    write()
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    monkeypatch.setattr("betasigma.devices.Look", lambda: Look(tmp_path))
    threads, told = torch.get_num_threads(), []
    torch.set_num_threads(2)
    following = Following(HARDWARE, told.append)

    def look(others: float, seconds: float = 5.0, worker: float = 0) -> tuple[int, list[str]]:
        clock[0] += seconds
        own[0] += seconds * worker
        idle[0] += seconds * max(0, 1 - others)
        idle[1] += seconds * min(1, 2 - others)
        write()
        following()
        return torch.get_num_threads(), told

    yield look
    torch.set_num_threads(threads)


def test_who_comes_later_and_stays_is_made_room_for(looked, tmp_path):
    one = (
        "from here on 1 of 2 CPUs, since other processes use the rest; hardware.threads=2 takes all"
    )
    assert looked(0.1) == (2, [])
    assert looked(1) == (2, [])  # may be gone in a moment
    assert looked(0.2) == (2, [])
    assert looked(1, worker=0.9) == (2, [])
    assert looked(1, worker=0.9) == (2, [])
    (tmp_path / "proc/self/task/5/children").write_text("")  # it ends, and what it had used with it
    assert looked(0) == looked(0) == (2, [])
    assert looked(1, 4) == (2, [])  # not looked at yet
    assert looked(0.9, 1) == (2, [])
    assert looked(1) == (1, [one])
    assert looked(2) == (1, [one])
    assert looked(0) == (1, [one])
    back = "all 2 CPUs from here on, since they are idle"
    assert looked(0) == (2, [one, back])


@pytest.mark.parametrize(
    "words",
    [{"threads": 2}, {"deterministic": True}, {"devices": 2}, {"nodes": 2}],
)
def test_where_the_number_of_threads_is_settled_nobody_is_followed(looked, words):
    told: list[str] = []
    following = Following({**HARDWARE, **words}, told.append)
    for _ in range(3):
        looked(1)
        torch.set_num_threads(2)
        following()
    assert (torch.get_num_threads(), told) == (2, [])


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, True),
        ("ALL", True),
        ("AVX512_CORE_AMX", True),
        ("avx2", False),
        ("AVX512_CORE", False),
    ],
)
def test_a_limit_below_bf16_is_a_processor_without_it(monkeypatch, limit, expected):
    monkeypatch.setattr(devices, "_cpu_features", lambda: {"avx2", "avx512_bf16"})
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert devices.computes_bf16("cpu") is expected
