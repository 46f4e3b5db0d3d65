"""What starts the cases of the GPU kit: nothing that a case does costs the numbers of another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

KIT = Path(__file__).parents[2] / "bench" / "gpu" / "kit.py"
PROGRAM = """
import json, subprocess, sys, time
from pathlib import Path
kind, into = sys.argv[1], Path(sys.argv[sys.argv.index("--into") + 1])
into.write_text(json.dumps({"half": 1}))
if kind == "breaks":
    sys.exit("out of luck")
if kind == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    into.write_text(json.dumps({"half": 1, "child": child.pid}))
    time.sleep(60)
into.write_text(json.dumps({"half": 1, "whole": 2, "status": "ok"}))
"""


def ran(tmp_path: Path, cases: list[str], *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, numbers and log of the kit over a program that stands in for the cases."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    only = [word for case in cases for word in ("--only", case)]
    command = [sys.executable, str(KIT), "run", str(tmp_path / "out"), "--carried", str(tmp_path)]
    command += ["--program", str(program), "--limit", "1.5", *only, *options]
    code = subprocess.run(command, capture_output=True, check=False).returncode
    (numbers,) = (tmp_path / "out").glob("gpu-*.json")
    log = numbers.with_suffix(".log")
    return code, json.loads(numbers.read_text()), log.read_text() if log.is_file() else ""


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_case_that_fails_or_hangs_keeps_what_it_had_found_and_ends_no_other(tmp_path):
    code, found, log = ran(tmp_path, ["breaks", "hangs", "fine"])
    cases = found["cases"]
    assert [case["status"] for case in cases.values()] == ["failed", "timed_out", "ok"]
    assert [case["half"] for case in cases.values()] == [1, 1, 1]
    assert "more than" in cases["hangs"]["reason"] and "code 1" in cases["breaks"]["reason"]
    assert ended(cases["hangs"]["child"]), "what a case has started ends with it"
    assert cases["fine"]["whole"] == 2 and "reason" not in cases["fine"]
    assert "out of luck" in log and code == 1
    assert {"device", "driver", "torch", "commit", "date"} <= set(found["about"])


def test_when_the_minutes_are_over_the_other_cases_say_so(tmp_path):
    code, found, _ = ran(tmp_path, ["fine"], "--minutes", "0")
    assert found["cases"]["fine"] == {"status": "no_time_left"}
    assert code == 0
