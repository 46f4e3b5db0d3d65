"""What an offline run of wandb wrote: the records of its `.wandb` file.

The format is LevelDB's log: blocks of 32 KiB, in each a checksum, a length, whether a record begins
or ends, and its bytes. wandb no longer ships a reader in Python.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

made_by_protoc: Any = wandb_internal_pb2  # its names are made when it is imported

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """Every record, in order. ValueError if the file is not of this format."""
    data, at, parts = path.read_bytes(), FILE_HEADER, b""
    if data[:4] != b":W&B":
        raise ValueError(f"{path} is no file of wandb")
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # the rest of a block is padding
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + HEADER])
        if kind not in (FULL, FIRST, MIDDLE, LAST):
            raise ValueError(f"{path}: no record at byte {at}")
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            record = made_by_protoc.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def logged(record: Any) -> set[str]:
    """The names in a record of the run's history, tables by one name."""
    keys = ([*item.nested_key] or [item.key] for item in record.history.item)
    return {"/".join(key[:1]) for key in keys}
