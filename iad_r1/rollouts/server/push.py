"""Weights from the trainer to its rollout servers: all of them at once, one tensor at a time.

A server is claimed, so that two ranks do not do it at once, and paused; it takes the weights,
forgets what it computed from the old ones, is told the version of the new ones, and goes on. What
fails on the way leaves it paused with the version `incomplete`, which no run accepts answers of.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from iad_r1.errors import IadError, TrainingError
from iad_r1.processes import distributed
from iad_r1.rollouts.colocate.sampler import check_intake
from iad_r1.rollouts.server import stream as weight_stream
from iad_r1.rollouts.server.client import Gone, Server

INCOMPLETE = "incomplete"
RESETS = ("/reset_encoder_cache", "/reset_mm_cache", "/reset_prefix_cache")


def push(
    servers: Sequence[Server], weights: Iterable[tuple[str, Tensor]], version: str
) -> dict[str, dict[str, float]]:
    """Give weights to servers; for each server's url, the sum of what went into each parameter.

    `weights` are read to the end; `version` is `<run>/<number>`. Gone if a server went away
    meanwhile or another rank is at it; MismatchError, TrainingError if one did not take them.
    """
    deliveries: list[_Delivery] = []
    try:
        for server in servers:
            deliveries.append(_Delivery(server, version))
        for name, tensor in weights:
            for delivery in deliveries:
                delivery.send(name, tensor)
        return {delivery.server.url: delivery.finish() for delivery in deliveries}
    finally:
        for delivery in deliveries:
            delivery.close()


def rpc(server: Server, method: str, *arguments: Any) -> Any:
    """What the worker of a server answers to a method of `WeightIntake`."""
    results = server.ask("/collective_rpc", {"method": method, "args": arguments})["results"]
    if len(results) != 1:
        raise TrainingError(
            f"{server.url} runs one model on {len(results)} GPUs, which the weight synchronisation "
            f"does not understand. Start a server for each GPU: {server.command}, and list all of "
            "them in rollout.servers."
        )
    return results[0]


class _Delivery:
    """One server's intake. What goes wrong with the connection is told at the end, in the words
    of the server where it has any."""

    def __init__(self, server: Server, version: str) -> None:
        self.server, self.version = server, version
        run, rank = version.partition("/")[0], distributed.rank()
        if not rpc(server, "iad_claim", run, rank, server.patience)["granted"]:
            raise Gone("another rank is giving it weights")
        self.token = secrets.token_hex(16)
        self._answer: dict[str, Any] | Exception | None = None
        server.ask("/pause?mode=abort&clear_cache=false", {})
        server.ask("/update_weight_version", {"new_version": INCOMPLETE})
        try:
            here = weight_stream.address_towards(server.host, server.port, server.patience)
        except OSError as error:
            raise Gone(str(error)) from None
        self.listener = weight_stream.listen(here)
        self.thread = threading.Thread(target=self._receive, daemon=True)
        self.thread.start()
        self.connection = self._accept()

    def _receive(self) -> None:
        """Runs beside the sending, until the server has taken the last tensor."""
        host, port = self.listener.getsockname()[:2]
        patience = self.server.patience
        try:
            self._answer = rpc(
                self.server, "iad_receive", host, port, self.token, self.version, patience
            )
        except (Gone, IadError) as error:
            self._answer = error

    def _accept(self) -> Any:
        """The server's connection; None if it ended without one, as when it has these weights."""
        while self.thread.is_alive():
            found = weight_stream.accept(self.listener, self.token, self.server.patience)
            if found is not None:
                return found
        return None

    def send(self, name: str, tensor: Tensor) -> None:
        """One tensor, unless the connection has broken."""
        if self.connection is not None:
            try:
                weight_stream.send(self.connection, name, tensor)
            except OSError:
                self._hang_up()  # the server says why

    def finish(self) -> dict[str, float]:
        """Have the server use what it was sent; the sums of its `Intake`."""
        if self.connection is not None:
            try:
                weight_stream.finish(self.connection)
            except OSError:
                self._hang_up()
        self.thread.join()
        if isinstance(self._answer, Exception):
            raise self._answer
        assert self._answer is not None  # the thread has ended
        check_intake(self._answer["unknown"], self._answer["missing"])
        for path in RESETS:
            reset(self.server, path)
        self.server.ask("/update_weight_version", {"new_version": self.version})
        self.server.ask("/resume", {})
        rpc(self.server, "iad_release")
        return self._answer["sums"]

    def close(self) -> None:
        """Hang up, if that was not done."""
        self._hang_up()
        self.listener.close()

    def _hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def reset(server: Server, path: str) -> None:
    """Have a server forget what it computed from earlier weights."""
    answer = server.ask(path, {})
    if answer is not None and not answer["success"]:
        raise TrainingError(
            f"the rollout server {server.url} would not forget the prompts of the old weights: "
            "some requests still run. Only this run may ask it."
        )
