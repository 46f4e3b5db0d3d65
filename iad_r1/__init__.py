"""Teach a vision-language model to say whether a part is defective, where, and how.

`Inspector` gives verdicts in a program of one's own. It is loaded when it is asked for, and torch
with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iad_r1.command.inspector import Inspector

__all__ = ["Inspector"]


def __getattr__(name: str) -> Any:
    if name == "Inspector":
        from iad_r1.command.inspector import Inspector

        return Inspector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
