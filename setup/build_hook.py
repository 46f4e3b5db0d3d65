"""Puts `conf/` into a built wheel as `iad_r1/conf`. A checkout is used in place instead."""

from __future__ import annotations

from typing import Any

# hatchling exists only in the environment that pip builds in.
from hatchling.builders.hooks.plugin.interface import (  # pyright: ignore[reportMissingImports]
    BuildHookInterface,
)


class ConfInWheel(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds; `version` is "standard" or "editable"."""
        if version == "standard":
            build_data["force_include"]["conf"] = "iad_r1/conf"
