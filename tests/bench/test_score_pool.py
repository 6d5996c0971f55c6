import json
import subprocess
import sys

import pytest

from demo.product import CHECKOUT

RAY = CHECKOUT / ".venv-ray" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not RAY.exists(), reason=".venv-ray is not there; make bench-score-pool makes it")
def test_the_bench_runs():
    """On small images it ends well, and its last line is JSON with the figures that it is for."""
    sizes = ["--image-size", "32", "--images", "40", "--labels", "40"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.score_pool", *sizes], cwd=CHECKOUT, stdout=subprocess.PIPE, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["runs"]) == 4
    assert all(run["images_per_s"] > 0 and run["core_s_per_image"] > 0 for run in result["runs"])
    assert all(result[key] > 0 for key in ("fetch_core_ms", "decode_core_ms"))
    assert 20 < result["output_bytes_per_image"] < 200
    assert set(result["pool_of_100_million"]) == {"output_gb", "core_hours"}
