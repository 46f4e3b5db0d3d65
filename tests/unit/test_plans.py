"""docs/plans.md is what the code computes now, and its commands can be typed."""

from __future__ import annotations

import random
import re
import shlex

import pytest

from bench import plans
from iad_r1.command import compose


@pytest.mark.parametrize("name", ["llava_ov_05b", "qwen25vl_7b"])
def test_the_page_is_what_the_code_computes_now(name: str) -> None:
    """Two of seven sections; the whole page is compared in tests/system."""
    said = plans.FILE.read_text(encoding="utf-8")
    section = "\n".join(plans.section(plans.composed(name)))
    assert section + "\n" in said, "run `python bench/plans.py`"


def test_every_backbone_has_every_cell_and_a_command_for_each_that_fits() -> None:
    lines = plans.FILE.read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ") for line in lines if re.match(r"\| (PA-SFT|SC-GRPO) ", line)]
    assert len(rows) == len(plans.BACKBONES) * 2 * 2 * 3
    cells = [cell for row in rows for cell in row[3:]]
    assert len(cells) == 2 * len(rows)
    assert all("`python run.py stage=" in cell or "nothing fits" in cell for cell in cells)


def test_commands_of_the_page_compose() -> None:
    commands = re.findall(r"`python run.py (.*?)`", plans.FILE.read_text(encoding="utf-8"))
    for command in random.Random(0).sample(commands, 2):
        compose.compose([word for word in shlex.split(command) if not word.startswith("init=")])
