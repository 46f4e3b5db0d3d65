"""The `method` and `patchcore` sections. Values: `conf/method/` and `conf/config.yaml`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iad_r1.settings.base import Count, Percent, Section


class Method(Section):
    """What answers: a vision-language model, or nearest good patches."""

    name: Literal["model", "patchcore"]


class Patchcore(Section):
    """Nearest good patches: what is remembered of good pictures, and when they are compared.

    `beside` says whether they judge what a model is evaluated on, too: photographs, if the extra
    `features` is installed and a split has at most `beside_limit` of them; always; or never.
    """

    beside: Literal["photographs", "always", "never"]
    beside_limit: Count
    pictures: Annotated[int, Field(ge=2)]  # good ones of a product, at most
    patches: Annotated[int, Field(ge=1000)]  # of all these, at most
    side: Annotated[int, Field(ge=64, multiple_of=32)]  # pixels of a picture made square
    overkill: Percent  # of good pictures called defective
