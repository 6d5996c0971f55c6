"""A small run of `make chaos`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.harness.serving import has_haproxy
from demo.product import CHECKOUT

pytestmark = [pytest.mark.rare, pytest.mark.timeout(1800)]


@pytest.mark.skipif(not has_haproxy(), reason="needs haproxy: apt-get install haproxy")
def test_no_answer_is_lost_or_wrong_under_faults():
    """In 1,500 requests."""
    command = [sys.executable, "-m", "bench.chaos", "--requests=1500", "--seed=7"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["requests"], result["lost"], result["wrong"]) == (1500, 0, 0), done.stderr
    assert result["swaps"] >= 7
    assert result["kills"] >= 3
    assert done.returncode == 0, result
