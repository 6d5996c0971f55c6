import pytest

from contract.errors import LabelError
from trainer.labels.exports import read_export


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            '[{"image": "a.png", "id": 1, "label": "cat"}]',
            r"JSON-MIN\); choose JSON in the project's Export dialog",
        ),
        ("annotation_id,annotator,image,label\n1,1,a.png,cat\n", "CSV"),
        ("annotation_id\tannotator\timage\tlabel\n1\t1\ta.png\tcat\n", "TSV"),
        ('{"images": [], "annotations": [], "categories": []}', "COCO"),
        ("PK\x03\x04", "YOLO"),
        ('[{"id": 1,\n"data": {}, ', "broken JSON"),
        ("{}", "not a list of tasks"),
        ("[]", "has none; label some and export again"),
        ('[{"data": {"image": "a.png"}, "completions": []}]', "before 1.0; export it with a newer Label Studio"),
    ],
    ids=["json-min", "csv", "tsv", "coco", "zip", "cut off", "object", "empty", "before 1.0"],
)
def test_rejects_other_formats(tmp_path, text, reason):
    (tmp_path / "export").write_text(text)
    with pytest.raises(LabelError, match=reason):
        read_export(tmp_path / "export")


def test_rejects_a_missing_file(tmp_path):
    with pytest.raises(LabelError, match="cannot read the export"):
        read_export(tmp_path / "gone.json")
