import json
from types import SimpleNamespace

import numpy
import pytest

from bench.harness import frame
from bench.harness.frame import read_options, report

OPTIONS = {
    "image_size": (224, "in pixels"),
    "precision": (("fp32", "int8"), "of it"),
    "batches": ([1, 8], "sizes"),
    "quick": (False, "less of it"),
}


@pytest.fixture
def subject():
    manifest = SimpleNamespace(backbone=SimpleNamespace(name="tiny"), passes=20)
    return SimpleNamespace(version=SimpleNamespace(manifest=manifest), source="digits")


def test_an_option_has_the_type_of_its_default():
    assert vars(read_options("x", "Asks.", OPTIONS, [])) == {
        "quick": False,
        "image_size": 224,
        "precision": "fp32",
        "batches": [1, 8],
        "save": False,
    }
    given = read_options("x", "Asks.", OPTIONS, ["--image-size", "32", "--batches", "4,2", "--precision", "int8"])
    assert (given.image_size, given.batches, given.precision) == (32, [2, 4], "int8")
    assert read_options("x", "Asks.", OPTIONS, ["--quick"]).quick is True
    for wrong in (["--precision", "fp16"], ["--image-size", "x"]):
        with pytest.raises(SystemExit):
            read_options("x", "Asks.", OPTIONS, wrong)


def test_the_last_line_contains_figures_options_and_machine(subject, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(frame, "RESULTS", tmp_path)
    options = read_options("x", "Asks.", OPTIONS, ["--save"])
    report("x", options, subject, {"rate": 1 / 3, "rows": [{"s": 2 / 3}], "small": 1.23456e-7, "large": 12.34567})
    line = capsys.readouterr().out
    told = json.loads(line)
    assert (told["bench"], told["source"], told["backbone"]) == ("x", "digits", "tiny")
    assert (told["options"]["image_size"], told["rate"]) == (224, 0.3333)
    assert told["rows"] == [{"s": 0.6667}]
    assert (told["small"], told["large"]) == (1.235e-7, 12.3457)
    assert {"date", "processor", "cores", "load"} <= told["machine"].keys()
    assert told["machine"]["packages"]["numpy"] == numpy.__version__
    assert [path.read_text() for path in tmp_path.iterdir()] == [line]
