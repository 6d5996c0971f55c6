import json

import pytest

pytest.importorskip("openvino", reason="needs requirements/bench.txt, which make bench-passes installs")

from bench.passes.__main__ import main

SIZE = "--image-size=32 --labels=40 --photos=60 --batches=1,2"
EFFORT = "--rounds=2 --slow-rounds=1 --passes=5,20 --reference=100 --sets=2"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_prints_results_as_json(capfd):
    main([*SIZE.split(), *EFFORT.split()])
    *table, last = capfd.readouterr().out.splitlines()
    result = json.loads(last)
    for name in ("ours_over_single_pass", "speedup_vs_baal", "speedup_vs_naive", "ours_over_openvino_single_pass"):
        assert result[name].keys() == {"1", "2"}
        assert all(value > 0 for value in result[name].values())
    assert {"baal", "naive", "single", "openvino", "openvino_int8", "ours"} <= result["images_per_s"].keys()
    assert [row["passes"] for row in result["passes_table"]] == [5, 20]
    assert result["threads"] == result["machine"]["cores"]
    assert any(line.split()[:1] == ["ours"] for line in table)
