"""Sections whose options are modules: one module and one YAML file add an option.

A module of such a package holds `Settings`, the types of the YAML file of its name. Importing it is
cheap.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError


def names(package: str) -> list[str]:
    """Every option there is."""
    return sorted(module.name for module in iter_modules(import_module(package).__path__))


def find(package: str, name: str) -> Any:
    """The module of that name."""
    return import_module(f"{package}.{name}")


def typed_by(package: str) -> BeforeValidator:
    """Has a section checked as the `Settings` of the module that its `name` stands for."""

    def typed(value: Any) -> Any:
        if not isinstance(value, dict) or "name" not in value:
            return value
        if value["name"] not in names(package):
            known = ", ".join(map(repr, names(package)))
            facts = {"discriminator": "'name'", "tag": str(value["name"]), "expected_tags": known}
            raise PydanticKnownError("union_tag_invalid", facts)
        return find(package, value["name"]).Settings.model_validate(value)

    return BeforeValidator(typed)
