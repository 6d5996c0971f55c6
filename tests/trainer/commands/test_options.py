"""Parsing of options, and those that are rejected early."""

from pathlib import Path

import pytest

from tests.trainer.small import write_folders
from trainer.__main__ import main, parse_arguments
from trainer.ranking.options import RankingOptions, RankOptions
from trainer.settings import Source, Training
from trainer.study.options import StudyOptions
from trainer.watching.rounds import WatchedProject, WatchOptions


def options_of(command):
    return parse_arguments(command.split())[1]


def test_options_have_the_defaults_of_their_settings():
    assert options_of("run --export e.json") == [Source(export=Path("e.json")), Training()]
    assert options_of("rank --project 3") == [RankOptions(3)]
    assert options_of("watch --project 3") == [WatchOptions((WatchedProject(3),)), Training(), RankingOptions()]
    assert options_of("simulate --images pool") == [StudyOptions(Path("pool")), Training()]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("run --images pool", "--image-size 0,--validation 1,--learning-rate x,--passes 1,--head big,--train head"),
        ("rank --project 3", "--strategy bold,--holdout-share 1,--holdout-share -0.1,--batch-size 0,--poll 1"),
        ("watch --project 3", "--labels 0,--minutes 0,--poll 3600,--keep 0,--keep none,--rounds 0,--dry-run,--force"),
        ("simulate --images pool", "--seeds 0,--initial 1,--query 0,--rounds 0,--test 0,--test 1,--long-tail 0.5"),
        (
            "simulate --images pool",
            "--workers 0,--class-balance 1.1,--dropout 0,--units 0,--holdout-share 0.1,--seed 1",
        ),
        ("prune", "--keep 0"),
    ],
)
def test_rejects_invalid_options_with_the_usage(capsys, command, options):
    for option in options.split(","):
        with pytest.raises(SystemExit, match="2"):
            main([*command.split(), *option.split()])
        assert option.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "simulate"])
def test_rejects_an_unknown_backbone_before_reading_images(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "pool", each=4)
    assert main([command, "--images", "pool", "--weights", "none", "--backbone", "vgg61"]) == 1
    err = capsys.readouterr().err
    assert "unknown --backbone 'vgg61'; did you mean vgg19 or vgg16" in err
    assert "images:" not in err


@pytest.mark.parametrize(
    ("options", "environ", "message"),
    [
        ("--weights nowhere.pth", {}, "--weights nowhere.pth: no such file; expected imagenet, none or a file"),
        ("--label-config config.xml", {}, "--label-config is only for --export"),
        ("", {"LABELNEXT_BASIC_AUTH": "secret"}, "LABELNEXT_BASIC_AUTH must be user:password"),
        ("", {"WORLD_SIZE": "2"}, "the trainer runs in one process: start it without torchrun"),
    ],
)
def test_rejects_invalid_settings_before_training(run_trainer, models, monkeypatch, capsys, options, environ, message):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert run_trainer(*options.split()) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not models.exists()
