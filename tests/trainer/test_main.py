import errno
import io
import json
import os
import signal
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.subjects import tiny_model
from contract.errors import TrainingError
from contract.versions.repository import Repository
from contract.versions.results import Metrics, TrainingRecord
from contract.versions.version import BACKBONE_WEIGHTS_FILE, SIGNATURE_FILE
from tests.disks import fill, small_disk
from tests.trainer.small import use_small_backbone, write_folders
from tests.versions import publish
from trainer import labelstudio
from trainer.__main__ import COMMANDS, main, parse_arguments
from trainer.ordering.strategies import DEFAULT_STRATEGY
from trainer.ranking import rank as rank_module
from trainer.ranking.options import RankingOptions, RankOptions
from trainer.ranking.rank import Summary
from trainer.ranking.releasing import load_original
from trainer.settings import Environment, Source, Training
from trainer.study import simulate as simulate_module
from trainer.study.options import StudyOptions
from trainer.watching import watch as watch_module
from trainer.watching.processes import FROM_STDIN, LABELS_AT_FAULT
from trainer.watching.rounds import WatchedProject, WatchOptions

NAME = "20260102T030405678Z-0a1b2c"


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty repository in the environment, and a small network."""
    monkeypatch.setenv("LABELNEXT_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("LABELNEXT_CACHE_DIR", str(tmp_path / "features"))
    use_small_backbone(monkeypatch)
    return tmp_path / "models"


@pytest.fixture
def train(tmp_path, models):
    folders = write_folders(tmp_path / "images", each=4)
    arguments = ["run", "--images", str(folders), "--weights", "none", "--image-size", "32", "--epochs", "2"]
    return lambda *more: main([*arguments, *more])


# ---- options


def options_of(command):
    return parse_arguments(command.split())[1]


def test_options_fill_the_settings_of_each_command():
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
def test_invalid_options_are_refused_with_the_usage(capsys, command, options):
    for option in options.split(","):
        with pytest.raises(SystemExit, match="2"):
            main([*command.split(), *option.split()])
        assert option.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "simulate"])
def test_an_unknown_backbone_is_refused_before_any_image_is_read(tmp_path, monkeypatch, capsys, command):
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
def test_what_cannot_work_is_refused_early_in_one_line(train, models, monkeypatch, capsys, options, environ, message):
    """Under torchrun, each process would do all of the work."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert train(*options.split()) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not models.exists()


# ---- results and errors


@pytest.mark.slow
def test_a_run_ends_with_one_line_of_json_and_its_version_is_checked(train, models, capsys):
    """The options are in the manifest. `check` detects a single changed bit, too little to change the metrics."""
    assert train("--weight-decay", "0.003", "--class-balance", "0", "--units", "64", "--dropout", "0.4") == 0
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    document = json.loads(line)
    figures = ["accuracy", "macro_f1", "nll", "ece"]
    assert list(document) == ["version", "labels", "confirmed", "classes", *figures, "seconds", "advice", "stages"]
    assert {"labels", "images", "fit", "validate", "publish"} <= document["stages"].keys()
    assert sum(document["stages"].values()) <= document["seconds"]
    assert (document["labels"], document["classes"]) == (12, 3)
    assert "training" in err
    manifest = Repository(models).open(document["version"]).manifest
    assert (manifest.training.recipe["weight_decay"], manifest.training.recipe["class_balance"]) == (0.003, 0)
    assert [site.features for site in manifest.dropout_sites] == [(64,), (64,)]
    assert [site.probability for site in manifest.dropout_sites] == pytest.approx([0.4, 0.4])
    assert main(["check"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert (checked["version"], checked["dropout_sites"], checked["passes"]) == (document["version"], 2, 20)
    assert checked["mean_bald"] > 0
    path = models / "default" / document["version"] / BACKBONE_WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    assert main(["check"]) == 1
    assert "has sha256" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 30], ids="{} kB".format)
def test_a_full_disk_is_an_error_of_one_line_and_the_next_run_succeeds(train, models, capsys, room):
    with small_disk(models, "2m"):
        fill(models)
        os.truncate(models / "filler", (models / "filler").stat().st_size - room * 1024)
        assert train() == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        assert err.splitlines()[-1].startswith(f"error: expected to write to {models}")
        assert "No space left on device (0 of 2 MiB are free); make room" in err.splitlines()[-1]
        assert [path for path in models.rglob("*") if path.is_dir() and path.name != "default"] == []
        (models / "filler").unlink()
        assert train() == 0
        assert Repository(models).current() == json.loads(capsys.readouterr().out)["version"]


def test_system_errors_are_one_line_and_bugs_keep_their_traceback(models, capsys, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(models / "CURRENT"))

    monkeypatch.setattr(Repository, "rollback", refuse)
    assert main(["rollback", NAME]) == 1
    assert capsys.readouterr().err == f"error: {models}/CURRENT: Permission denied; nothing was changed\n"
    monkeypatch.setattr(Repository, "rollback", lambda *_: (models / "nowhere").read_bytes())
    with pytest.raises(FileNotFoundError):
        main(["rollback", NAME])


def test_an_error_is_one_line_and_no_traceback(train, capsys, monkeypatch):
    def diverge(*args, **kwargs):
        raise TrainingError("diverged at learning rate 1")

    monkeypatch.setattr("trainer.train.fit", diverge)
    assert train() == LABELS_AT_FAULT
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: diverged at learning rate 1" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("module", "arguments"),
    [(rank_module, ["rank", "--project", "3"]), (simulate_module, ["simulate", "--images", "pool"])],
    ids=["rank", "simulate"],
)
def test_an_interrupted_command_says_how_to_continue(monkeypatch, capsys, module, arguments):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, arguments[0], interrupt)
    assert main(arguments) == 130
    assert "run it again to continue" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_ends_a_run_with_its_exit_code(train, models, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("trainer.publish.validate_version", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"):
        train()
    assert list((models / "default").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


# ---- commands


def test_versions_marks_the_current_one_and_rollback_moves_the_mark(models, capsys):
    assert main(["versions"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "no version has been published" in err
    measured = {"training": TrainingRecord(images=12), "metrics": Metrics(images=3, accuracy=0.75, macro_f1=0.5)}
    older, newer = (publish(Repository(models), b"1", **more).name for more in (measured, {}))
    assert main(["rollback", older]) == 0
    capsys.readouterr()
    assert main(["versions"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row[:28] for row in rows] == [f"* {older}", f"  {newer}"]
    assert rows[0].split()[3:] == ["12", "0.750", "0.500"]
    assert rows[1].split()[2:] == ["-", "-", "-"]
    assert main(["rollback", NAME]) == 1
    assert newer in capsys.readouterr().err


def test_activate_sets_the_model_version_of_the_project(models, monkeypatch, capsys):
    monkeypatch.setenv("LABELNEXT_LABEL_STUDIO_URL", "http://localhost:8080")
    monkeypatch.setenv("LABELNEXT_LABEL_STUDIO_TOKEN", "token")
    switched = []
    monkeypatch.setattr(labelstudio, "connect", lambda url, token, project: project)
    monkeypatch.setattr(labelstudio, "switch_model_version", lambda *to, sampling: switched.append((*to, sampling)))
    before = labelstudio.Project(3, "Pets", "<View/>", "yolo", "Uniform sampling", skip_queue="", created_at="")
    monkeypatch.setattr(labelstudio, "read_project", lambda *_: before)
    name = publish(Repository(models), b"one").name
    assert main(["activate", "--project", "3"]) == 0
    assert main(["activate", "--project", "3", "--keep-sampling"]) == 0
    assert switched == [(3, name, "Uncertainty sampling"), (3, name, None)]
    record = load_original(Repository(models), 3)
    assert (record.sampling, record.model_version) == ("Uniform sampling", "yolo")
    assert name in capsys.readouterr().err


def test_rank_prints_a_sentence_and_json_and_reads_options_from_stdin(monkeypatch, capsys):
    asked = []

    def rank(options, environment):
        asked.append(options)
        counts = dict.fromkeys(("waiting", "audit", "near_duplicates", "failed", "kept", "imported", "removed"), 0)
        rest = {"project": options.project, "strategy": options.strategy, "tasks": 850, "seconds": 61.23}
        return Summary(ranking="v1.r2", version="v1", **rest, **counts)

    monkeypatch.setattr(rank_module, "rank", rank)
    assert main(["rank", "--project", "3"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [document[name] for name in ("ranking", "version", "tasks", "seconds")] == ["v1.r2", "v1", 850, 61.23]
    assert err.splitlines()[-1] == (
        f"ranked 850 tasks of project 3 by {DEFAULT_STRATEGY} (0 in the random holdout, 0 near-duplicates, "
        "0 not scored) as v1.r2; 61 s"
    )
    told = RankOptions(3, control="-x", server="http://c", weights="none")
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(asdict(told))))
    assert main(["rank", FROM_STDIN]) == 0
    assert asked == [RankOptions(3), told]


def test_watch_passes_options_to_run_and_rank(monkeypatch):
    asked = []

    def watch(options, environment, *, run, rank):
        asked.append((options, run, rank))
        return 7

    monkeypatch.setattr(watch_module, "watch", watch)
    arguments = "--labels 25 --minutes 30 --poll 2 --rounds 4 --keep 5 --control=-x --holdout-share 0.2 --weights none "
    arguments += "--backbone vgg11 --image-size 96 --train all --epochs 3 --precision fp32 --server http://c "
    arguments += "--strategy margin --keep-sampling"
    assert main(["watch", "--project", "3", *arguments.split()]) == 7
    [(options, run, rank)] = asked
    assert options == WatchOptions(
        (WatchedProject(3),), labels=25, minutes=30.0, poll_s=2.0, rounds=4, keep=5, server="http://c"
    )
    both = {"holdout_share": 0.2, "weights": "none", "backbone": "vgg11", "image_size": 96}
    training = Training(**both, part="all", epochs=3, precision="fp32")
    assert COMMANDS["run"].values({"project": 3, **run}) == [Source(3, control="-x"), training]
    ranking = RankOptions(3, control="-x", server="http://c", strategy="margin", keep_sampling=True, **both)
    assert COMMANDS["rank"].values({"project": 3, **rank}) == [ranking]


# ---- keys


@pytest.fixture
def settings(models, tmp_path, capsys):
    assert main(["keygen", str(tmp_path / "keys")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("=")[0] for line in lines] == ["LABELNEXT_SIGNING_KEY", "LABELNEXT_VERIFY_KEY"]
    return dict(line.split("=", 1) for line in lines)


def test_the_variables_printed_by_keygen_sign_and_verify(settings, models, tmp_path, monkeypatch, capsys):
    unsigned = tiny_model.publish(Repository(models))
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    signed = tiny_model.publish(Environment.read(os.environ).repository())
    assert (models / "default" / signed / SIGNATURE_FILE).is_file()
    assert main(["check"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == signed
    assert main(["versions"]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.startswith(f"  {unsigned}  refused: version {unsigned} has no readable signature")
    assert second.startswith(f"* {signed}  2026")
    assert main(["rollback", unsigned]) == 1
    assert "requires one" in capsys.readouterr().err
    (models / "default" / "CURRENT").write_text(unsigned)
    assert main(["check"]) == 1
    assert main(["keygen", str(tmp_path / "keys")]) == 1
    assert "File exists" in capsys.readouterr().err


@pytest.mark.usefixtures("settings")
def test_a_run_whose_version_would_be_refused_ends_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABELNEXT_VERIFY_KEY", str(tmp_path / "keys" / "labelnext.pub"))
    assert main(["run", "--images", "nowhere"]) == 1
    assert "LABELNEXT_SIGNING_KEY is not" in capsys.readouterr().err
