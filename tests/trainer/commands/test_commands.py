"""Each command's effect and output."""

import io
import json
from dataclasses import asdict

import pytest

from contract.versions.repository import Repository
from contract.versions.results import Metrics, TrainingRecord
from contract.versions.version import BACKBONE_WEIGHTS_FILE
from tests.versions import publish
from trainer import labelstudio
from trainer.__main__ import COMMANDS, main
from trainer.ordering.strategies import DEFAULT_STRATEGY
from trainer.ranking import rank as rank_module
from trainer.ranking.options import RankOptions
from trainer.ranking.rank import Summary
from trainer.ranking.releasing import load_original
from trainer.settings import Source, Training
from trainer.watching import watch as watch_module
from trainer.watching.processes import FROM_STDIN
from trainer.watching.rounds import WatchedProject, WatchOptions


@pytest.mark.slow
def test_run_prints_one_line_of_json_and_check_validates_the_version(run_trainer, models, capsys):
    """`check` detects a single changed bit, which is too little to change the metrics."""
    assert run_trainer("--weight-decay", "0.003", "--class-balance", "0", "--units", "64", "--dropout", "0.4") == 0
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    summary = json.loads(line)
    metrics = ["accuracy", "macro_f1", "nll", "ece"]
    assert list(summary) == ["version", "labels", "confirmed", "classes", *metrics, "seconds", "advice", "stages"]
    assert {"labels", "images", "fit", "validate", "publish"} <= summary["stages"].keys()
    assert sum(summary["stages"].values()) <= summary["seconds"]
    assert (summary["labels"], summary["classes"]) == (12, 3)
    assert "training" in err
    manifest = Repository(models).open(summary["version"]).manifest
    assert (manifest.training.recipe["weight_decay"], manifest.training.recipe["class_balance"]) == (0.003, 0)
    assert [site.features for site in manifest.dropout_sites] == [(64,), (64,)]
    assert [site.probability for site in manifest.dropout_sites] == pytest.approx([0.4, 0.4])
    assert main(["check"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert (checked["version"], checked["dropout_sites"], checked["passes"]) == (summary["version"], 2, 20)
    assert checked["mean_bald"] > 0
    path = models / "default" / summary["version"] / BACKBONE_WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    assert main(["check"]) == 1
    assert "has sha256" in capsys.readouterr().err


def test_rollback_changes_the_version_that_versions_marks(models, capsys):
    measured = {"training": TrainingRecord(images=12), "metrics": Metrics(images=3, accuracy=0.75, macro_f1=0.5)}
    older, newer = (publish(Repository(models), b"1", **fields).name for fields in (measured, {}))
    assert main(["rollback", older]) == 0
    capsys.readouterr()
    assert main(["versions"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row[:28] for row in rows] == [f"* {older}", f"  {newer}"]
    assert rows[0].split()[3:] == ["12", "0.750", "0.500"]
    assert rows[1].split()[2:] == ["-", "-", "-"]
    assert main(["rollback", "20260102T030405678Z-0a1b2c"]) == 1
    assert newer in capsys.readouterr().err


@pytest.mark.usefixtures("models")
def test_versions_of_an_empty_repository_is_an_empty_table(capsys):
    assert main(["versions"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "no version has been published" in err


def test_activate_sets_the_model_version_of_the_project(models, monkeypatch, capsys):
    """The project's original settings are recorded."""
    monkeypatch.setenv("LABELNEXT_LABEL_STUDIO_URL", "http://localhost:8080")
    monkeypatch.setenv("LABELNEXT_LABEL_STUDIO_TOKEN", "token")
    calls = []
    monkeypatch.setattr(labelstudio, "connect", lambda url, token, project: project)
    monkeypatch.setattr(labelstudio, "switch_model_version", lambda *to, sampling: calls.append((*to, sampling)))
    project = labelstudio.Project(3, "Pets", "<View/>", "yolo", "Uniform sampling", skip_queue="", created_at="")
    monkeypatch.setattr(labelstudio, "read_project", lambda *_: project)
    name = publish(Repository(models), b"one").name
    assert main(["activate", "--project", "3"]) == 0
    assert main(["activate", "--project", "3", "--keep-sampling"]) == 0
    assert calls == [(3, name, "Uncertainty sampling"), (3, name, None)]
    original = load_original(Repository(models), 3)
    assert (original.sampling, original.model_version) == ("Uniform sampling", "yolo")
    assert name in capsys.readouterr().err


@pytest.fixture
def ranked(monkeypatch):
    """The options of each ranking; nothing is ranked."""
    calls = []

    def rank(options, environment):
        calls.append(options)
        counts = dict.fromkeys(("waiting", "audit", "near_duplicates", "failed", "kept", "imported", "removed"), 0)
        figures = {"project": options.project, "strategy": options.strategy, "tasks": 850, "seconds": 61.23}
        return Summary(ranking="v1.r2", version="v1", **figures, **counts)

    monkeypatch.setattr(rank_module, "rank", rank)
    return calls


def test_rank_prints_a_sentence_and_one_line_of_json(ranked, capsys):
    assert main(["rank", "--project", "3"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert [summary[name] for name in ("ranking", "version", "tasks", "seconds")] == ["v1.r2", "v1", 850, 61.23]
    assert err.splitlines()[-1] == (
        f"ranked 850 tasks of project 3 by {DEFAULT_STRATEGY} (0 in the random holdout, 0 near-duplicates, "
        "0 not scored) as v1.r2; 61 s"
    )
    assert ranked == [RankOptions(3)]


def test_commands_can_read_options_from_stdin(ranked, monkeypatch):
    options = RankOptions(3, control="-x", server="http://c", weights="none")
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(asdict(options))))
    assert main(["rank", FROM_STDIN]) == 0
    assert ranked == [options]


def test_watch_passes_options_to_run_and_rank(monkeypatch):
    calls = []

    def watch(options, environment, *, run, rank):
        calls.append((options, run, rank))
        return 7

    monkeypatch.setattr(watch_module, "watch", watch)
    arguments = "--labels 25 --minutes 30 --poll 2 --rounds 4 --keep 5 --control=-x --holdout-share 0.2 --weights none "
    arguments += "--backbone vgg11 --image-size 96 --train all --epochs 3 --precision fp32 --server http://c "
    arguments += "--strategy margin --keep-sampling"
    assert main(["watch", "--project", "3", *arguments.split()]) == 7
    [(options, run, rank)] = calls
    assert options == WatchOptions(
        (WatchedProject(3),), labels=25, minutes=30.0, poll_s=2.0, rounds=4, keep=5, server="http://c"
    )
    shared = {"holdout_share": 0.2, "weights": "none", "backbone": "vgg11", "image_size": 96}
    training = Training(**shared, part="all", epochs=3, precision="fp32")
    assert COMMANDS["run"].values({"project": 3, **run}) == [Source(3, control="-x"), training]
    ranking = RankOptions(3, control="-x", server="http://c", strategy="margin", keep_sampling=True, **shared)
    assert COMMANDS["rank"].values({"project": 3, **rank}) == [ranking]
