import re

import pytest

from contract.errors import ConfigError
from trainer.__main__ import parse_arguments
from trainer.settings import Training
from trainer.study.options import StudyOptions, check_strategies, queries, split_backbones


def test_query_lists_the_labels_of_each_round(tmp_path):
    """The last number applies to all further rounds; numbers beyond the rounds are ignored."""

    def parse(query, rounds):
        _, [options, _] = parse_arguments(
            ["simulate", f"--images={tmp_path}", f"--query={query}", f"--rounds={rounds}"]
        )
        return queries(options)

    assert parse("7", 3) == (7, 7, 7)
    assert parse("5, 10,20", 5) == (5, 10, 20, 20, 20)
    assert parse("5,10,20", 2) == (5, 10)
    assert sum(queries(StudyOptions(tmp_path))) == 280


@pytest.mark.parametrize("query", ["", "0", "5,-1", "5,many", ","])
def test_rejects_invalid_queries(tmp_path, capsys, query):
    with pytest.raises(SystemExit):
        parse_arguments(["simulate", f"--images={tmp_path}", f"--query={query}"])
    assert "--query" in capsys.readouterr().err


@pytest.mark.parametrize("strategies", ["random, bold", "bald, bald", "", "labelnext+start", "bold+start"])
def test_rejects_unknown_missing_and_repeated_strategies(strategies):
    check_strategies(["random", "margin+start", "core-set+start"])
    got = re.escape(strategies or "none")
    with pytest.raises(ConfigError, match=f"labelnext, balanced-cover.*core-set.*each once, got {got}; "):
        check_strategies(strategies.split(", "))


def test_backbones_have_separate_sizes_and_weights(tmp_path):
    weights = tmp_path / "vgg16.pth"
    weights.touch()
    named = f"vgg16@112, vgg16 ,{tmp_path}/own.onnx"
    trainings = split_backbones(Training(backbone=named, weights=f"{weights},none,imagenet", image_size=96, epochs=3))
    assert {name: (each.backbone, each.weights, each.image_size, each.epochs) for name, each in trainings.items()} == {
        "vgg16@112": ("vgg16", str(weights), 112, 3),
        "vgg16": ("vgg16", "none", 96, 3),
        "own": (f"{tmp_path}/own.onnx", "imagenet", 96, 3),
    }
    trainings = split_backbones(Training(backbone="a,b", weights="none"))
    assert {each.weights for each in trainings.values()} == {"none"}
    with_comma = Training(weights=str(tmp_path / "my,weights.pth"))
    (tmp_path / "my,weights.pth").touch()
    assert split_backbones(with_comma) == {"vgg16": with_comma}


@pytest.mark.parametrize(
    ("backbone", "weights", "message"),
    [
        ("vgg16,vgg16", "imagenet", "--backbone must name each backbone once, got vgg16 twice"),
        ("here/a.onnx,there/a.onnx", "imagenet", "must name each backbone once, got a twice; rename the file"),
        (" , ", "imagenet", "--backbone must name a backbone, got ' , '"),
        ("a,b", "v.pth", "is for one network, but --backbone names 2; .* such as --weights v.pth,imagenet$"),
        ("a,b,c", "none,imagenet", "one for each of the 3 backbones in the same order, got 2: none, imagenet"),
        ("a,b", "none,v.pth", "v.pth: no such file"),
    ],
)
def test_rejects_invalid_backbones_and_weights(backbone, weights, message):
    with pytest.raises(ConfigError, match=message):
        split_backbones(Training(backbone=backbone, weights=weights))
