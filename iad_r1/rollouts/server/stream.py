"""Weights over a TCP connection: one tensor at a time, as plain bytes.

The trainer listens where the server can reach it, for one sync, and the engine's worker connects
with the token it was told; nothing else is let in. Each tensor is a header (JSON: name, dtype,
shape) and its bytes; an empty header is the end. Nothing is unpickled, so neither side can make
the other run code.
"""

from __future__ import annotations

import hmac
import json
import math
import socket
import struct
from collections.abc import Iterator

import torch
from torch import Tensor

from iad_r1.errors import MismatchError

LENGTH = struct.Struct(">I")  # bytes of the header that follows; 0 is the end
# Floating point alone: no model here keeps integers among its weights.
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16)}
POLL = 0.2  # seconds between two looks at whether the other side gave up


def listen(host: str) -> socket.socket:
    """A listening socket on a free port of one of this machine's addresses."""
    found = socket.create_server((host, 0), family=_family(host))
    found.settimeout(POLL)
    return found


def address_towards(host: str, port: int, timeout: float) -> str:
    """This machine's address on the way to a host that listens. OSError if it does not."""
    with socket.create_connection((host, port), timeout) as probe:
        return probe.getsockname()[0]


def accept(listener: socket.socket, token: str, timeout: float) -> socket.socket | None:
    """The connection of the one who knows the token; None if nobody came in the time of a poll.
    Whoever does not know it is hung up on.

    Args:
        timeout: seconds that a later read or write may take.
    """
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return None
    connection.settimeout(timeout)
    try:
        said = _read(connection, len(token))
    except OSError:
        said = bytearray()
    if hmac.compare_digest(bytes(said), token.encode()):
        return connection
    connection.close()
    return None


def send(connection: socket.socket, name: str, tensor: Tensor) -> None:
    """One tensor. MismatchError if it is of a kind that no weight is here."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise MismatchError(
            f"{name} is {dtype}: only {', '.join(DTYPES)} weights can be sent to a rollout server. "
            "Use rollout=hf, and report this."
        )
    header = json.dumps({"name": name, "dtype": dtype, "shape": list(tensor.shape)}).encode()
    connection.sendall(LENGTH.pack(len(header)) + header)
    flat = tensor.detach().cpu().contiguous().view(-1)
    connection.sendall(flat.view(torch.uint8).numpy().data)


def finish(connection: socket.socket) -> None:
    """Say that no tensor follows."""
    connection.sendall(LENGTH.pack(0))


def receive(host: str, port: int, token: str, timeout: float) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the one who listens there, each in memory of its own.

    ConnectionError if the stream ends before it said that it would.
    """
    with socket.create_connection((host, port), timeout) as connection:
        connection.sendall(token.encode())
        while size := LENGTH.unpack(_read(connection, LENGTH.size))[0]:
            yield _tensor(connection, json.loads(bytes(_read(connection, size))))


def _tensor(connection: socket.socket, header: dict) -> tuple[str, Tensor]:
    dtype, shape = DTYPES[header["dtype"]], header["shape"]
    data = _read(connection, math.prod(shape) * dtype.itemsize)
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return header["name"], flat.view(shape)


def _read(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = connection.recv_into(view[got:])
        if not count:
            raise ConnectionError("the other side of the weight stream went away")
        got += count
    return data


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
