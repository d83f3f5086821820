"""A SLURM of one node on this machine, for tests: real daemons, with all they keep in one folder.
It needs root and Debian's slurm-wlm and munge."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

START_SEC = 60

# Jobs in "high" preempt those in "low", which SLURM then queues again.
_CONF = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={port}
SlurmdPort={node_port}
AuthType=auth/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmUser=root
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
NodeName={host} CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes={host} State=UP PriorityTier=10
"""


def why_not() -> str | None:
    """Why SLURM cannot be started here."""
    missing = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if missing:
        return f"there is no {missing[0]} here"
    return "only root can start SLURM" if os.geteuid() else None


@contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """SLURM, until the end of the block; the environment that its commands need."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    conf.write_text(
        _CONF.format(
            host=socket.gethostname().partition(".")[0],
            port=_free_port(),
            node_port=_free_port(),
            folder=folder,
            cpus=os.cpu_count(),
            memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 - 2000,
        )
    )
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    mine = _start_munge(folder)
    try:
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([daemon], env=environment, check=True)
        deadline = time.monotonic() + START_SEC
        while "idle" not in _output(environment, "sinfo", "--noheader", "--format=%t"):
            if time.monotonic() > deadline:
                raise RuntimeError((folder / "slurmctld.log").read_text()[-2000:])
            time.sleep(0.2)
        yield {"SLURM_CONF": str(conf)}
    finally:
        with suppress(subprocess.SubprocessError):
            subprocess.run(["scancel", "--me", "--full"], env=environment, timeout=10)
        for name in ["slurmd", "slurmctld"] + ["munged"] * mine:
            with suppress(OSError, ValueError):
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)


def _start_munge(folder: Path) -> bool:
    """Whether it was not there already."""
    if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
        return False
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "/usr/sbin/munged"], check=True)
    pid = subprocess.run(["pgrep", "-u", "munge", "-o", "munged"], capture_output=True, check=True)
    (folder / "munged.pid").write_bytes(pid.stdout)
    return True


def _output(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])
