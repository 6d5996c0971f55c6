"""Every parser of bytes from elsewhere under a fuzzer that looks for new paths through it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
SECONDS = 20
MOST_SECONDS_AN_INPUT = 5
MOST_MIB = 3000
LEAST_INPUTS = 1000

pytestmark = [
    pytest.mark.rare,
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None,
        reason="atheris is not installed; it has no wheel for every machine",
    ),
]


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_its_own_errors_leaves_a_parser(tmp_path, name):
    """In time and memory that are bounded, and what it accepts it writes and reads again as the same."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz", name, str(tmp_path), "-print_final_stats=1", "-seed=1"),
            *(f"-max_total_time={SECONDS}", f"-timeout={MOST_SECONDS_AN_INPUT}", f"-rss_limit_mb={MOST_MIB}"),
            f"-artifact_prefix={tmp_path}/",
        ],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    log = done.stderr.decode(errors="replace")
    assert done.returncode == 0, log[-4000:]
    inputs = int(log.partition("stat::number_of_executed_units:")[2].split()[0])
    assert inputs > LEAST_INPUTS
