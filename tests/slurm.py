"""A real SLURM on this machine, for as long as a test needs it: munged, slurmctld and two slurmd.

The two nodes of the cluster are this machine twice, so a job of two nodes is started by srun as it
would be on two machines. Nothing is shared with a SLURM that may run here: folders, keys and
ports are its own. SLURM wants root for all that.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")
NODES = ("one", "two")
PATIENCE = 60  # seconds until it has to be up
CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=120
PartitionName=tests Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 State=UNKNOWN\n"


def missing() -> str | None:
    """Why there can be none here."""
    if absent := [name for name in PROGRAMS if shutil.which(name, path=path()) is None]:
        return f"SLURM is not installed ({', '.join(absent)}); see `make slurm`"
    return None if os.geteuid() == 0 else "SLURM's daemons need root here"


def path() -> str:
    """Where daemons are found, also by users whose PATH lacks those of the system."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Inside, there is a cluster of two nodes with one CPU each, and commands that get the yielded
    environment speak to it. Afterwards none of its processes is left, jobs included."""
    conf = folder / "slurm.conf"
    environment = {**os.environ, "PATH": path(), "SLURM_CONF": str(conf)}
    with ExitStack() as stack:
        for name in ("state", *(f"spool-{node}" for node in NODES), "munge"):
            (folder / name).mkdir(mode=0o700)
        conf.write_text(_conf(folder))
        key = folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        for number, command in enumerate(_daemons(folder)):
            log = stack.enter_context((folder / f"daemon-{number}.log").open("w"))
            # they end with this process, however it ends
            stack.callback(
                _end,
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *command],
                    env=environment, stdout=log, stderr=log, start_new_session=True,
                ),
            )  # fmt: skip
            if number == 0:
                _wait(lambda: (folder / "munge" / "socket").exists(), folder)
        _wait(lambda: says(environment, "sinfo", "-h", "-o", "%T %D") == "idle 2", folder)
        stack.callback(_end_jobs, environment, folder)
        yield environment


def _daemons(folder: Path) -> list[list[str]]:
    munge = folder / "munge"
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log",
             "seed-file": "seed"}  # fmt: skip
    return [
        # --force: the folder belongs to root, not to the user munge
        ["munged", "--foreground", "--force",
         *(f"--{option}={munge / name}" for option, name in files.items())],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", node] for node in NODES),
    ]  # fmt: skip


def _conf(folder: Path) -> str:
    host, ports = socket.gethostname(), _free_ports(1 + len(NODES))
    text = CONF.format(host=host, controller=ports[0], folder=folder)
    return text.replace(
        "PartitionName",
        "".join(
            NODE.format(name=name, host=host, port=port)
            for name, port in zip(NODES, ports[1:], strict=True)
        )
        + "PartitionName",
    )


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def says(environment: dict[str, str], *command: str) -> str:
    """What a command of SLURM prints."""
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()


def _wait(up: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not up():
        if time.monotonic() > deadline:
            logs = [f"{file.name}:\n{file.read_text()[-800:]}" for file in folder.glob("*.log")]
            raise AssertionError("SLURM does not start\n" + "\n".join(logs))
        time.sleep(0.2)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_jobs(environment: dict[str, str], folder: Path) -> None:
    """Processes that were started for this very cluster, and those that watched over them: they
    outlive their daemon, and are known by a socket in its folder."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ours = process.environ().get("SLURM_CONF") == environment["SLURM_CONF"]
            if ours or (process.name() == "slurmstepd" and _listens(process, folder)):
                process.kill()


def _listens(process: psutil.Process, folder: Path) -> bool:
    sockets = process.net_connections(kind="unix")
    return any(str(found.laddr).startswith(f"{folder}/") for found in sockets)
