"""A real rollout server, started as a user starts it, and ended in several ways."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from iad_r1.rollouts.server.client import Server

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = ["backbone=qwen25vl_3b", "weights=tiny", "engine.precision=float32"]
ROLLOUT = [
    "rollout=vllm_server",
    "rollout.kv_cache_gib=0.125",
    "rollout.memory=0.05",
    "rollout.max_model_len=512",
    "rollout.max_num_seqs=16",
    "rollout.eager=true",
    "rollout.patience=280",
]


def run_py(*arguments: str, cwd: Path, **how: Any) -> subprocess.Popen[str]:
    """`python run.py ...` with its output in `output.txt`."""
    with (cwd / "output.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "run.py"), *arguments],
            cwd=cwd, stdout=output, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "WANDB_MODE": "disabled"}, **how,
        )  # fmt: skip


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Running:
    """`stage=serve` on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        self.process = run_py(
            "stage=serve", *MODEL, *ROLLOUT, f"rollout.port={self.port}", cwd=self.folder
        )

    def wait(self) -> None:
        """Until it answers."""
        client = Server(self.url, 280, "run.py stage=serve")

        def healthy() -> None:
            assert self.process.poll() is None, self.output()
            client.ask("/health")

        client.patiently(healthy)

    def output(self) -> str:
        """What it printed so far."""
        return (self.folder / "output.txt").read_text()

    def family(self) -> list[psutil.Process]:
        """`run.py`, vLLM's server and its engine."""
        with contextlib.suppress(psutil.NoSuchProcess):
            mine = psutil.Process(self.process.pid)
            return [mine, *mine.children(recursive=True)]
        return []

    def kill(self) -> None:
        """SIGKILL to vLLM's server, as when memory runs out; `run.py` ends the rest."""
        family = self.family()
        for process in family[1:2]:
            process.kill()
        _, alive = psutil.wait_procs(family, timeout=300)
        for process in alive:
            process.kill()
        assert not alive, [process.cmdline() for process in alive]
        self.process.wait()

    def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)
