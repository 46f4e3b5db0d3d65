"""How an outside model is asked, through an interface like OpenAI's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from iad_r1.settings.base import Above0, AtLeast0, Count, Count0, Section


class Chat(Section):
    """Which model, where, and what it may cost. The key is read from the environment alone."""

    model: Annotated[str, Field(min_length=1)]
    base_url: Annotated[str, Field(pattern=r"^https?://[^/\s@]+(/\S*)?$")]
    key: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]  # the name of a variable, never the key
    limit: Literal["max_completion_tokens", "max_tokens"]
    temperature: AtLeast0 | None
    concurrency: Count
    timeout: Above0
    retries: Count0
    dollars_in: AtLeast0 | None
    dollars_out: AtLeast0 | None
    budget: Above0 | None
    replies: str | None

    def problems(self, where: str) -> Iterator[str]:
        """A sentence for each setting that contradicts another; `where` is their section."""
        if self.budget is not None and None in (self.dollars_in, self.dollars_out):
            yield (
                f"{where}.budget needs the prices of a million tokens: {where}.dollars_in and "
                f"{where}.dollars_out."
            )
