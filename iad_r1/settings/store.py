"""The `store` section. Value: `conf/config.yaml`."""

from __future__ import annotations

from iad_r1.settings.base import Section


class StoreConfig(Section):
    """Whether a stage that some run has trained already, under the same conditions, is taken from
    there. What is trained is kept for others in either case."""

    reuse: bool
