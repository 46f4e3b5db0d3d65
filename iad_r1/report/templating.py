"""How the templates of pages are read."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment() -> Environment:
    """Values are escaped, and one that a template names must be there."""
    return Environment(
        loader=PackageLoader("iad_r1.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
