"""A sweep records its jobs: it can be continued, on any launcher, and looked at at any time."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT, TINY, Outcome, launch, typed

from betasigma.commands import train as command
from betasigma.launch import planning
from betasigma.launch.snapshot import digest_of_code, keep_code
from betasigma.runs.job_states import JobState, read_jobs
from betasigma.runs.lock import LOCK
from betasigma.runs.slurm_queue import QueuedJob, queued_jobs
from betasigma.runs.sweep_record import RecordedJob, SweepRecord, read_sweep, write_sweep

WORDS = ("-m", *TINY, "steps=2", "hydra.sweep.dir=sweep")


def of_seeds(jobs: list[JobState]) -> dict[str, str]:
    return {job.directory.name: job.state for job in jobs}


def written(run: Path) -> int:
    """When the last checkpoint of a run was written."""
    return (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A sweep of three jobs of which the second fails, and what it said."""
    original = command._fit

    def fit(trainer: Any, *others: Any) -> None:
        if "seed=2" in str(trainer.default_root_dir):
            raise RuntimeError("[a bug], only here")
        original(trainer, *others)

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("begun")
        patch.chdir(folder)
        patch.setattr(command, "_fit", fit)
        return folder / "sweep", launch("train", *WORDS, "seed=1,2,3")


@pytest.fixture
def half_a_sweep(here: Path, begun: tuple[Path, Outcome]) -> Outcome:
    """The same in ``sweep``, to be written to."""
    shutil.copytree(begun[0], here / "sweep")
    return begun[1]


def test_a_sweep_is_continued_where_a_job_failed(here: Path, half_a_sweep: Outcome) -> None:
    sweep = here / "sweep"
    assert half_a_sweep.status == 1
    assert "sweep: 2 finished, 1 failed" in half_a_sweep.out
    assert "RuntimeError: [a bug], only here" in half_a_sweep.out
    assert "1 of 3 jobs failed" in half_a_sweep.err
    first = written(sweep / "seed=1")

    again = launch("train", "-m", "resume=sweep")
    assert again.status == 0, again.err
    assert "1 job to do; left alone: 2 finished" in again.out
    assert of_seeds(read_jobs(sweep)) == dict.fromkeys(["seed=1", "seed=2", "seed=3"], "finished")
    assert "seed=1" in again.out.partition("sweep: 3 finished")[2]
    assert json.loads((sweep / "seed=2" / "status.json").read_text())["job"] == 1

    done = launch("train", "-m", "resume=sweep")
    assert (done.status, done.err) == (0, "")
    assert "0 jobs to do; left alone: 3 finished" in done.out
    same = launch("train", *WORDS, "seed=1,2,3")
    assert "0 jobs to do; left alone: 3 finished" in same.out
    assert written(sweep / "seed=1") == first


@pytest.mark.slow
def test_a_continued_sweep_takes_more_steps_and_more_jobs(
    here: Path, half_a_sweep: Outcome
) -> None:
    sweep = here / "sweep"
    assert half_a_sweep.status == 1
    longer = launch("train", "-m", "resume=sweep", "steps=4")
    assert longer.status == 0, longer.err
    assert [(job.step, job.steps) for job in read_jobs(sweep)] == [(4, 4)] * 3

    more = launch("train", *WORDS, "steps=4", "seed=3,4")  # one of them is new
    assert more.status == 0, more.err
    assert "1 job to do; left alone: 1 finished" in more.out
    assert [job.directory.name for job in read_jobs(sweep)] == [f"seed={n}" for n in (1, 2, 3, 4)]


@pytest.mark.slow
def test_resume_auto_finds_the_newest_sweep_of_the_same_jobs(here: Path) -> None:
    words = ("-m", *TINY, "steps=2", "seed=1,2", "resume=auto")
    first = launch("train", *words)
    assert first.status == 0, first.err
    assert "no sweep of these jobs was begun here; starting one" in first.out
    again = launch("train", *words)
    assert "the newest sweep of these jobs is outputs/" in again.out
    assert "left alone: 2 finished" in again.out
    other = launch("train", *words, "ema.decay=0.5", "hydra.sweep.dir=outputs/other")
    assert "starting one" in other.out
    assert other.status == 0, other.err


@pytest.mark.slow
def test_several_runs_are_continued_each_in_its_directory(
    here: Path, half_a_sweep: Outcome
) -> None:
    runs = [here / "sweep" / f"seed={seed}" for seed in (1, 3)]
    named = ",".join(f"sweep/{run.name}" for run in runs)
    done = launch("train", "-m", f"resume={named}", "steps=3", "hydra.sweep.dir=both")
    assert done.status == 0, done.err
    assert [job.step for job in read_jobs(here / "both")] == [3, 3]
    assert [job.directory.resolve() for job in read_jobs(here / "both")] == runs
    assert not [path for path in (here / "both").iterdir() if path.is_dir()]


@pytest.mark.slow
def test_a_sweep_goes_on_in_the_processes_of_joblib(here: Path, half_a_sweep: Outcome) -> None:
    """Here as when it is continued once more, without a word of where."""
    pytest.importorskip("joblib")
    first = written(here / "sweep" / "seed=1")
    place = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    for words in (place, ["steps=3"]):
        done = typed("-m", "resume=sweep", *words, cwd=here, timeout=200)
        assert done.status == 0, done.out + done.err
        assert "Joblib.Parallel(n_jobs=2" in done.out + done.err
        record = read_sweep(here / "sweep")
        assert record is not None
        assert record.place == place
        if words is place:
            assert "1 job to do; left alone: 2 finished" in done.out
            assert written(here / "sweep" / "seed=1") == first
    assert [(job.state, job.step) for job in read_jobs(here / "sweep")] == [("finished", 3)] * 3


def test_overwrite_begins_a_job_over(here: Path, half_a_sweep: Outcome) -> None:
    before = [written(here / "sweep" / f"seed={seed}") for seed in (1, 3)]
    over = launch("train", *WORDS, "seed=1,4", "overwrite=true")
    assert "left alone" not in over.out
    assert over.status == 0  # the second, which has failed, was not launched
    assert "3 jobs finished, 1 of an earlier command failed, in sweep" in over.err
    after = [written(here / "sweep" / f"seed={seed}") for seed in (1, 3)]
    assert [new > old for old, new in zip(before, after, strict=True)] == [True, False]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-m", "resume=sweep", "seed=4,5"], "resume=sweep continues the jobs of a sweep as they"),
        (["resume=sweep"], "resume=sweep is a sweep of several runs: add -m"),
        (["-m", "resume=sweep", "overwrite=true"], "overwrite=true begins over, and resume=sweep"),
        (
            ["-m", "seed=4,5", "hydra.sweep.dir='sweep/seed=1'"],
            "sweep/seed=1 is the directory of a run: give another hydra.sweep.dir",
        ),
        (["hydra.run.dir=sweep"], "sweep is the directory of a sweep: give another one, or add -m"),
        (["-m", "resume=nowhere"], "resume=nowhere is no sweep, which has a sweep.json, and no"),
        (["-m", "resume=sweep,sweep/seed=1"], "resume=sweep is a sweep: continue one at a time"),
        (["-m", "resume=sweep", "batch_size=8", "steps=4"], "sweep/seed=1 holds another run (of a"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    here: Path, half_a_sweep: Outcome, words: list[str], sentence: str
) -> None:
    before = written(here / "sweep" / "seed=1")
    refused = launch("train", *words)
    assert refused.status == 1
    assert sentence in refused.err
    assert refused.err.count("\n") == 1
    assert written(here / "sweep" / "seed=1") == before
    assert of_seeds(read_jobs(here / "sweep"))["seed=1"] == "finished"


@pytest.mark.parametrize(
    ("job", "place", "sentence"),
    [
        (
            ["hydra.callbacks.x._target_=os.system"],
            [],
            "hydra.callbacks.x._target_=os.system, which",
        ),
        (["tags=[${oc.env:HOME}]"], [], "tags=[${oc.env:HOME}], which is not taken from a file"),
        (["seed=1"], ["cluster=slurm", "cluster.setup=[reboot]"], "cluster.setup=[reboot], which"),
        (["seed=1"], ["hydra.launcher._target_=os.system"], "hydra.launcher._target_=os.system, w"),
        (["plugins=[antigravity]"], [], "plugins=[antigravity] stands in a config"),
    ],
)
def test_a_stranger_s_sweep_runs_no_code(
    here: Path, job: list[str], place: list[str], sentence: str
) -> None:
    (here / "theirs").mkdir()
    jobs = [RecordedJob("run", [*TINY, *job], 2)]
    write_sweep(here / "theirs", SweepRecord("train", jobs, place))
    refused = launch("train", "-m", "resume=theirs")
    assert refused.status == 1
    assert sentence in refused.err
    assert refused.err.count("\n") == 1
    assert [path.name for path in (here / "theirs").iterdir()] == ["sweep.json"]


def test_two_commands_on_one_sweep_are_one_too_many(here: Path, half_a_sweep: Outcome) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom betasigma.runs.lock import locked\n"
        "with locked(Path('sweep')):\n    print('held', flush=True)\n    time.sleep(100)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused = launch("train", "-m", "resume=sweep")
        assert f"sweep is in use: process {holder.pid} on {socket.gethostname()}" in refused.err
        assert refused.status == 1
        assert launch("jobs", "sweep").status == 0  # looking is allowed
    finally:
        holder.kill()
        holder.wait()


def a_job(sweep: Path, name: str, **status: object) -> RecordedJob:
    run = sweep / name
    run.mkdir(parents=True)
    if status:
        (run / "status.json").write_text(json.dumps(status))
    slurm = status.get("slurm_job")
    return RecordedJob(name, [f"name={name}"], 100, str(slurm) if slurm else None)


def stamp(seconds: float) -> str:
    """The time so many seconds ago, as a status has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - seconds))


def test_every_state_of_a_job(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SLURM says is given here; in tests/test_slurm.py it says it itself."""
    sweep, own = here / "sweep", {"host": socket.gethostname(), "process": os.getpid()}
    queue = {
        "7_0": QueuedJob("PENDING", "", "Resources"),
        "7_1": QueuedJob("RUNNING", "node3", "None"),
        "7_2": QueuedJob("PENDING", "", "BeginTime"),
        "7_5": QueuedJob("RUNNING", "node4", "None"),
        "7_8": QueuedJob("RUNNING", "node5", "None", time.time()),
        "7_9": QueuedJob("COMPLETING", "node5", "None", time.time() - 600),
    }
    monkeypatch.setattr("betasigma.runs.job_states.queued_jobs", lambda: queue)
    monkeypatch.setattr(
        "betasigma.runs.job_states.how_they_ended", lambda ids: dict.fromkeys(ids, "OUT_OF_MEMORY")
    )
    jobs = [
        replace(a_job(sweep, "queued"), slurm="7_0"),
        a_job(sweep, "running", status="running", host="node3", slurm_job="7_1"),
        a_job(sweep, "preempted", status="interrupted", error="SIGTERM", slurm_job="7_2"),
        a_job(sweep, "killed", status="running", slurm_job="7_3"),
        replace(a_job(sweep, "no start"), slurm="7_4"),
        a_job(sweep, "stalled", status="running", host="node4", slurm_job="7_5"),
        a_job(sweep, "finished", status="finished", slurm_job="7_6"),
        replace(a_job(sweep, "again", status="failed", slurm_job="6_1"), slurm="7_0"),
        a_job(sweep, "restarted", status="interrupted", slurm_job="7_8", ended=stamp(120)),
        a_job(sweep, "ending", status="failed", slurm_job="7_9", ended=stamp(1)),
        replace(a_job(sweep, "alone", status="finished", started=stamp(10)), slurm="7_10"),
        replace(a_job(sweep, "lost", status="finished", started=stamp(900)), slurm="7_11"),
        replace(
            a_job(sweep, "on its own", status="running", slurm_job=None, started=stamp(10), **own),
            slurm="7_12",
        ),
        a_job(sweep, "here", status="running", **own),
        a_job(sweep, "dead", status="running", host=own["host"], process=2**22 + 1),
        a_job(sweep, "not begun"),
    ]
    write_sweep(sweep, SweepRecord("train", jobs, []))
    an_hour_ago = time.time() - 3600
    os.utime(sweep / "stalled" / "status.json", (an_hour_ago, an_hour_ago))
    activity = {"work": "training", "done": 40, "total": 100, "per_second": 2.0, "time": 0.0}
    (sweep / "running" / "activity.json").write_text(json.dumps({"training": activity}))
    for submitted in ("7_4", "7_10", "7_11", "7_12"):
        (sweep / "slurm" / submitted).mkdir(parents=True)
        os.utime(sweep / "slurm" / submitted, (time.time() - 300,) * 2)
    logs = sweep / "slurm" / "7_4"
    (logs / "7_4_0_log.err").write_text("Traceback\nModuleNotFoundError: No module named 'torch'\n")

    found = read_jobs(sweep)
    expected = {"killed": "failed", "no start": "failed", "again": "queued", "here": "running"}
    expected |= {"dead": "stopped", "restarted": "running", "ending": "failed"}
    expected |= {"alone": "finished", "lost": "failed", "on its own": "running"}
    assert of_seeds(found) == {
        job.directory: expected.get(job.directory, job.directory) for job in jobs
    }
    known = {job.directory.name: job for job in found}
    assert known["queued"].error == "Resources"
    assert (known["running"].step, known["running"].steps, known["running"].node) == (
        40,
        100,
        "node3",
    )
    assert known["running"].seconds_left == 30
    assert "SLURM says OUT_OF_MEMORY" in known["killed"].error
    assert "No module named 'torch'" in known["no start"].error
    assert known["preempted"].error == "SIGTERM; BeginTime"
    assert known["stalled"].error == "no sign of life for 60 minutes"
    assert "it was killed" in known["dead"].error

    shown = launch("jobs", "sweep")
    assert shown.status == 0, shown.err
    for word in ("40/100", "0:00:30", "node3", "7_2", "preempted", "4 running", "2 queued"):
        assert word in shown.out
    assert launch("jobs", "sweep", "conclude=true", "dpi=300").status == 1
    refused = launch("jobs", "sweep", "dpi=300")
    assert "dpi=300 has no effect without conclude=true" in refused.err
    assert (sweep / LOCK).exists() is False, "looking leaves nothing"

    monkeypatch.setattr("betasigma.runs.job_states.queued_jobs", lambda: None)
    unknown = [job for job in read_jobs(sweep) if job.state == "unknown"]
    assert [job.directory.name for job in unknown] == ["queued", "no start", "again", "lost"]
    assert all("SLURM does not answer: it may wait or have ended" in job.error for job in unknown)
    assert "4 unknown" in launch("jobs", "sweep").out


def test_times_are_read_however_the_user_has_squeue_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(
        "#!/bin/sh\n"
        'test "$SLURM_TIME_FORMAT" = standard && t=2026-11-27T04:00:00 || t="4 hours ago"\n'
        'echo "7_1|RUNNING|node3|$t|None"\n'
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    began = datetime(2026, 11, 27, 4).timestamp()
    assert queued_jobs() == {"7_1": QueuedJob("RUNNING", "node3", "None", began)}


def test_a_job_of_which_slurm_says_nothing_goes_on_elsewhere_only() -> None:
    unknown = JobState(Path("run"), "unknown", slurm="7_0")
    assert planning._is_under_way(unknown, to_cluster=True)
    assert not planning._is_under_way(unknown, to_cluster=False)


def test_jobs_that_wait_for_a_living_command_are_queued(here: Path) -> None:
    sweep = here / "sweep"
    write_sweep(sweep, SweepRecord("train", [a_job(sweep, "first")], []))
    process = subprocess.Popen(["sleep", "100"])
    try:
        holder = {"host": socket.gethostname(), "process": process.pid}
        (sweep / LOCK).write_text(json.dumps(holder))
        assert of_seeds(read_jobs(sweep)) == {"first": "queued"}
    finally:
        process.kill()
        process.wait()
    assert of_seeds(read_jobs(sweep)) == {"first": "not begun"}


def test_a_directory_without_a_sweep_has_no_jobs(here: Path, ddpm_run: Path) -> None:
    for words in ([str(ddpm_run)], ["nothing"]):
        refused = launch("jobs", *words)
        assert refused.status == 1
        assert refused.err.startswith(f"error: sweep={words[0]} is no sweep's directory")


def test_a_copy_of_the_code_is_the_code(tmp_path: Path) -> None:
    kept = keep_code(tmp_path, "snapshot")
    copy = Path(kept["path"])
    script = (
        "import betasigma, betasigma.config_tree as c, betasigma.launch.snapshot as s\n"
        "from betasigma.runs.directory import describe_environment\n"
        "print(betasigma.__file__, c.conf_directory(), s.digest_of_code())\n"
        "print(describe_environment([])['git'].get('commit'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    package, conf, digest, commit = done.stdout.split()
    assert Path(package).parent == copy / "src" / "betasigma"
    assert Path(conf) == copy / "conf"
    assert digest == kept["digest"] == digest_of_code()
    assert commit == str(kept.get("commit"))
    (copy / "conf" / "train.yaml").write_text("")
    assert (ROOT / "conf" / "train.yaml").read_text()


def test_a_record_of_a_later_version_is_read(tmp_path: Path) -> None:
    record = SweepRecord("train", [RecordedJob("seed=1", ["seed=1"], 5)], [])
    write_sweep(tmp_path, record)
    file = tmp_path / "sweep.json"
    content = json.loads(file.read_text())
    (job,) = content["jobs"]
    file.write_text(json.dumps({**content, "jobs": [{**job, "priority": 1}], "new": {}}))
    assert read_sweep(tmp_path) == record
    file.write_text(json.dumps({**content, "jobs": ["seed=1"]}))
    assert read_sweep(tmp_path) is None


def test_a_record_is_read_back(tmp_path: Path) -> None:
    jobs = [RecordedJob("seed=1", ["seed=1"], 5, "12_0"), RecordedJob("seed=2", ["seed=2"])]
    record = SweepRecord("train", jobs, ["cluster=slurm"], code={"from": "live"})
    write_sweep(tmp_path, record)
    assert read_sweep(tmp_path) == record
    (tmp_path / "sweep.json").write_text('{"jobs": [{"directory": 1}]}')
    assert read_sweep(tmp_path) is None
