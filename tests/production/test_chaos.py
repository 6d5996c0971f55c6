"""`make chaos`, in small, and `make hostile`: everything breaks or attacks, and everybody gets the right answer."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from bench.harness.serving import has_haproxy
from demo.product import CHECKOUT

pytestmark = [pytest.mark.rare, pytest.mark.timeout(1800)]


def run(bench: str, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run a bench, and return what its last line says, too."""
    command = [sys.executable, "-m", bench, *options]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return done, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not has_haproxy(), reason="needs haproxy: apt-get install haproxy")
def test_everybody_gets_the_right_answer_whatever_breaks():
    """Nothing is lost or wrong in 1,500 requests."""
    done, result = run("bench.chaos", "--requests", "1500", "--seed", "7")
    assert (result["requests"], result["lost"], result["wrong"]) == (1500, 0, 0), done.stderr
    assert result["swaps"] >= 7
    assert result["kills"] >= 3
    assert done.returncode == 0, result


def test_everything_hostile_is_contained():
    """Each case is refused or scored as it must be, in its time, and the server is unharmed and has told nobody."""
    done, summary = run("bench.hostile")
    assert summary["failed"] == [], "\n".join(line for line in done.stdout.splitlines() if line.startswith("ESCAPED"))
    assert summary["contained"] == summary["cases"] == len(summary["names"]) >= 640
    assert done.returncode == 0
