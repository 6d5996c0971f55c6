import json
from pathlib import Path

import pytest

from contract.errors import ConfigError
from trainer.study.records import read_reference

CHECKOUT = Path(__file__).parents[3]
DOCUMENT = {
    "source": "random labels of a study",
    "labels": [20, 40],
    "macro_f1": [[0.1, 0.3], [0.1, 0.5]],
    "minority_f1": [[0.1, 0.2], [0.1, 0.2]],
    "accuracy": [[0.1, 0.9], [0.1, 0.9]],
}


def write(folder, **changes):
    (folder / "reference.json").write_text(json.dumps(DOCUMENT | changes))
    return folder / "reference.json"


def test_level_is_the_mean_of_final_values(tmp_path):
    result = read_reference(write(tmp_path))
    assert result.source == "random labels of a study"
    assert result.levels == pytest.approx({"macro_f1": 0.4, "minority_f1": 0.2, "accuracy": 0.9})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [40, 20]}, "labels must be ascending"),
        ({"labels": []}, "labels: "),
        ({"labels": [20, 40, 60]}, "each curve must have a value for each of 3 numbers of labels"),
        ({"accuracy": [[0.1, 90]]}, "accuracy: "),
        ({"loss": []}, "loss: "),
    ],
)
def test_rejects_invalid_references(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=f"{message}.*examples in bench/references"):
        read_reference(write(tmp_path, **changes))


def test_rejects_missing_and_non_json_files(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json cannot be read"):
        read_reference(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("labels")
    with pytest.raises(ConfigError, match=r"expected a reference in .*text\.json"):
        read_reference(tmp_path / "text.json")


@pytest.mark.parametrize("path", sorted((CHECKOUT / "bench" / "references").glob("*.json")), ids=lambda path: path.stem)
def test_pinned_references_are_valid(path):
    assert len(read_reference(path).macro_f1) >= 5
