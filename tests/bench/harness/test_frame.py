import json
from types import SimpleNamespace

import numpy
import pytest

from bench.harness import frame
from bench.harness.frame import read_options, report

OPTIONS = {
    "image_size": (224, "in pixels"),
    "precision": (("fp32", "int8"), "of the backbone"),
    "batches": ([1, 8], "sizes"),
    "quick": (False, "faster"),
}


@pytest.fixture
def subject():
    manifest = SimpleNamespace(backbone=SimpleNamespace(name="tiny"), passes=20)
    return SimpleNamespace(version=SimpleNamespace(manifest=manifest), source="digits")


def test_option_type_is_that_of_the_default():
    assert vars(read_options("x", "Measures.", OPTIONS, [])) == {
        "quick": False,
        "image_size": 224,
        "precision": "fp32",
        "batches": [1, 8],
        "save": False,
    }
    parsed = read_options("x", "Measures.", OPTIONS, ["--image-size", "32", "--batches", "4,2", "--precision", "int8"])
    assert (parsed.image_size, parsed.batches, parsed.precision) == (32, [2, 4], "int8")
    assert read_options("x", "Measures.", OPTIONS, ["--quick"]).quick is True
    for invalid in (["--precision", "fp16"], ["--image-size", "x"]):
        with pytest.raises(SystemExit):
            read_options("x", "Measures.", OPTIONS, invalid)


def test_report_contains_results_options_and_machine(subject, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(frame, "RESULTS", tmp_path)
    options = read_options("x", "Measures.", OPTIONS, ["--save"])
    report("x", options, subject, {"rate": 1 / 3, "rows": [{"s": 2 / 3}], "small": 1.23456e-7, "large": 12.34567})
    line = capsys.readouterr().out
    document = json.loads(line)
    assert (document["bench"], document["source"], document["backbone"]) == ("x", "digits", "tiny")
    assert (document["options"]["image_size"], document["rate"]) == (224, 0.3333)
    assert document["rows"] == [{"s": 0.6667}]
    assert (document["small"], document["large"]) == (1.235e-7, 12.3457)
    assert {"date", "processor", "cores", "load"} <= document["machine"].keys()
    assert document["machine"]["packages"]["numpy"] == numpy.__version__
    assert [path.read_text() for path in tmp_path.iterdir()] == [line]
