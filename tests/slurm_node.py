"""A SLURM on this machine, for tests: munge, controller and node daemons of Debian's packages, all
of it in a directory of its own, as whoever runs the tests.

As a script it stays until Ctrl-C, to try things out:
``python tests/slurm_node.py`` prints what to put into another terminal. ``python
tests/slurm_node.py 2`` starts two nodes, each with a daemon of its own.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scontrol")

CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={state}/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={state}/controller
SlurmdSpoolDir={state}/%n
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd-%n.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
InactiveLimit=0
{nodes}
PartitionName=DEFAULT Nodes=ALL DefMemPerCPU=500
PartitionName=local Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20
PartitionName=urgent MaxTime=60 PriorityTier=2
"""

NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=8000 "
    "State=UNKNOWN"
)


def missing_program() -> str | None:
    """The first program that is not installed, if any."""
    return next((name for name in PROGRAMS if shutil.which(name) is None), None)


@contextmanager
def slurm_here(nodes: int = 1) -> Iterator[dict[str, str]]:
    """Start a SLURM; inside the block it is reached with the environment that is yielded.

    Args:
        nodes: one, or two by two names of this machine.
    """
    # a short path: a socket's may not be longer than 107 characters
    state = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    environment = {"SLURM_CONF": str(state / "slurm.conf")}
    try:
        _start(state, {**os.environ, **environment}, nodes)
        yield environment
    finally:
        _stop(state, {**os.environ, **environment})


def _start(state: Path, environment: dict[str, str], nodes: int) -> None:
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    names = (host, "localhost")[:nodes]
    for name, mode in (("munge", 0o711), *((name, 0o755) for name in ("controller", *names))):
        (state / name).mkdir(mode=mode)
    state.chmod(0o755)
    key = state / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    ports = _free_ports(1 + nodes)
    listed = [
        NODE.format(name=name, host=host, port=port)
        for name, port in zip(names, ports[1:], strict=True)
    ]
    text = CONFIG.format(host=host, user=user, ports=ports, state=state, nodes="\n".join(listed))
    (state / "slurm.conf").write_text(text, encoding="utf-8")
    munge = state / "munge"
    _run(
        state,
        environment,
        "munged",
        "--force",
        f"--key-file={key}",
        f"--socket={munge / 'socket'}",
        f"--pid-file={state / 'munged.pid'}",
        f"--log-file={munge / 'log'}",
        f"--seed-file={munge / 'seed'}",
    )
    _run(state, environment, "slurmctld", "-c")
    for name in names:
        _run(state, environment, "slurmd", "-c", *(("-N", name) if nodes > 1 else ()))
    deadline = time.monotonic() + 30
    while _said(environment, "sinfo", "-h", "-p", "local", "-o", "%D %T") != f"{nodes} idle":
        if time.monotonic() > deadline:
            raise RuntimeError((state / "slurmctld.log").read_text("utf-8", "replace")[-2000:])
        time.sleep(0.1)


def _stop(state: Path, environment: dict[str, str]) -> None:
    if _process(state / "slurmctld.pid"):
        _said(environment, "scancel", f"--user={os.getuid()}")
        _wait(lambda: not _said(environment, "squeue", "-h"), 10)
    of_nodes = sorted(state.glob("slurmd-*.pid"))
    for file in (*of_nodes, state / "slurmctld.pid", state / "munged.pid"):
        process = _process(file)
        if process is None:
            continue
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(process, number)
            if _wait(lambda process=process: not Path(f"/proc/{process}").exists(), 10):  # type: ignore[misc]
                break
    shutil.rmtree(state, ignore_errors=True)


def _run(state: Path, environment: dict[str, str], *command: str) -> None:
    """Start a daemon, which leaves the foreground by itself."""
    with (state / "said.txt").open("a") as said:
        subprocess.run(command, env=environment, stdout=said, stderr=said, timeout=30, check=True)


def _said(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout.strip()


def _process(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def _wait(seen: object, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not seen():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


if __name__ == "__main__":
    lacks = missing_program()
    if lacks is not None:
        sys.exit(f"{lacks} is not installed (apt-get install slurm-wlm munge)")
    with (
        slurm_here(int(sys.argv[1]) if sys.argv[1:] else 1) as reached,
        suppress(KeyboardInterrupt),
    ):
        print(*(f"export {name}={value}" for name, value in reached.items()), flush=True)
        signal.pause()
