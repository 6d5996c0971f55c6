import csv
import json
from dataclasses import fields, replace

import pytest

from tests.trainer.report.pages import Page
from tests.trainer.small import small_backbone, write_folders
from tests.trainer.study.studies import change, make_study
from trainer.__main__ import main
from trainer.study import simulate as simulate_module
from trainer.study.records import Round
from trainer.study.report import choose_strategies, write_comparison
from trainer.study.run import complete
from trainer.study.statistics import summarise

BY_CLASS = {"labels_by_class", "f1"}
FILES = {"report.html", "rounds.csv", "classes.csv", "summary.json", "curves.png"}
STUDY = (
    "--train classifier --units 8 --epochs 20 --passes 4 --device cpu --seeds 1 --initial 9 --query 3 --rounds 1 "
    "--no-pseudo-labels"
)


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def studies():
    """Studies of two backbones, the second better by 0.1 or slightly more with every strategy and seed."""
    first = make_study(strategies=["random", "labelnext", "margin"], seeds=3, rounds=4)
    better = change(first, macro_f1=lambda each: each.macro_f1 + 0.1 + each.seed / 100)
    sizes = {"plain": (first, 112), "better@224": (better, 224)}
    return {name: replace(each, settings={**each.settings, "image_size": size}) for name, (each, size) in sizes.items()}


@pytest.fixture(scope="module")
def folder(studies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    write_comparison(studies, folder, title="photos")
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page(folder / "report.html")


class TestReport:
    def test_csv_tables_begin_with_the_backbone(self, studies, folder):
        assert {path.name for path in folder.iterdir()} == FILES
        rounds, classes = read_csv(folder / "rounds.csv"), read_csv(folder / "classes.csv")
        assert [*rounds[0]] == ["backbone", *(each.name for each in fields(Round) if each.name not in BY_CLASS)]
        assert [*classes[0]] == ["backbone", "strategy", "seed", "round", "labels", "class", "labels_of_class", "f1"]
        ended = [
            (name, each)
            for name, study in studies.items()
            for runs in study.runs.values()
            for run in runs
            for each in run
        ]
        for row, (name, each) in zip(rounds, ended, strict=True):
            assert (row["backbone"], row["strategy"], float(row["macro_f1"])) == (name, each.strategy, each.macro_f1)
            assert (int(row["seed"]), int(row["round"])) == (each.seed, each.round)
        by_class = [(name, *own) for name, each in ended for own in zip(each.labels_by_class, each.f1, strict=True)]
        assert [(row["backbone"], int(row["labels_of_class"]), float(row["f1"])) for row in classes] == by_class

    @pytest.mark.parametrize("strategy", ["random", "labelnext"])
    def test_table_compares_backbones_by_strategy(self, studies, page, strategy):
        """The best backbone first, with the paired difference from the first one named."""
        table = page.table(strategy)
        assert [*table] == ["backbone", "better@224", "plain"]
        measures = ("macro_f1", "minority_f1", "accuracy")
        for name, study in studies.items():
            own = summarise(study)[strategy]
            figures = [own[form.format(each)] for form in ("{}_final", "aulc_{}") for each in measures]
            assert table[name][:7] == [str(study.settings["image_size"]), *(f"{each:.3f}" for each in figures)]
        # Student's interval of 0.10, 0.11 and 0.12
        assert table["better@224"][7:] == ["+0.110", "+0.085 to +0.135"]
        assert table["plain"][7:] == ["0", ""]

    def test_page_links_to_the_report_of_each_backbone(self, page):
        page.assert_closed("plain/report.html", "better%40224/report.html")
        assert page.tags.count("svg") == 6
        assert {row[0] for row in page.tables["settings"]} >= {"passes", "machine"}
        assert "image_size" not in page.words


@pytest.mark.parametrize(
    ("studied", "compared"),
    [("margin,labelnext,random", ["random", "labelnext"]), ("bald,random", ["random"]), ("bald,margin", ["bald"])],
)
def test_compares_backbones_by_random_and_default(studied, compared):
    assert choose_strategies(studied.split(",")) == compared


@pytest.fixture
def simulate(tmp_path, monkeypatch):
    """Run the command in this process; the backbone `blind` has zero weights, all others distinguish colours."""
    folder = write_folders(tmp_path / "colours", each=12)
    monkeypatch.setenv("LABELNEXT_CACHE", str(tmp_path / "cache" / "images"))
    monkeypatch.setenv("LABELNEXT_CACHE_DIR", str(tmp_path / "cache" / "features"))

    def load_backbone(name, **_):
        backbone = small_backbone()
        if name == "blind":
            for parameter in backbone.module.parameters():
                parameter.data.zero_()
        return replace(backbone, name=name)

    def complete_here(runs, open_dataset, protocol, **_):
        for run in runs:
            complete(run, open_dataset(), protocol)

    for module in ("build", "frozen"):
        monkeypatch.setattr(f"trainer.model.{module}.load_backbone", load_backbone)
    monkeypatch.setattr(simulate_module, "complete_all", complete_here)
    return lambda out, *more: main(["simulate", f"--images={folder}", "--out", str(out), *STUDY.split(), *more])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_studies_several_backbones(simulate, tmp_path, capsys, monkeypatch):
    """Each with separate features; a second run computes nothing."""
    out, options = tmp_path / "study", ("--strategies", "random,labelnext", "--backbone", "seeing,blind")
    assert simulate(out, *options) == 0
    output = capsys.readouterr().out
    summaries = json.loads(output)
    assert {name: [*summary] for name, summary in summaries.items()} == {
        name: ["random", "labelnext"] for name in ("seeing", "blind")
    }
    for strategy in ("random", "labelnext"):
        assert summaries["blind"][strategy]["accuracy_final"] == pytest.approx(1 / 3)  # three classes of equal size
        assert summaries["seeing"][strategy]["accuracy_final"] > 0.8
    for name, summary in summaries.items():
        assert json.loads((out / name / "summary.json").read_text()) == summary
        assert json.loads((out / name / "settings.json").read_text())["backbone"] == name
        assert f"Which strategy saves labels? colours, {name}" in Page(out / name / "report.html").words
    assert "Which backbone? colours" in Page(out / "report.html").words
    drawn = [row for row in read_csv(out / "classes.csv") if (row["round"], row["strategy"]) == ("0", "random")]
    first, second = ([row["labels_of_class"] for row in drawn if row["backbone"] == name] for name in summaries)
    assert first == second  # both begin with the seed's random labels

    monkeypatch.setattr(simulate_module, "complete_all", None)
    assert simulate(out, *options) == 0
    assert capsys.readouterr().out == output
    for changed, message in (
        (("--query", "4"), "contains a study with query [3], this study has [4]"),
        (("--backbone", "seeing"), "contains a study of several backbones, this study has one; use another folder"),
    ):
        assert simulate(out, *options, *changed) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_does_not_overwrite_a_study_of_one_backbone(simulate, tmp_path, capsys):
    """Their files have equal names. With `--train all`, no features are computed in advance."""
    out, options = tmp_path / "study", ("--strategies", "random", "--backbone", "seeing", "--train", "all")
    assert simulate(out, *options) == 0
    assert [*json.loads(capsys.readouterr().out)] == ["random"]
    assert "backbone" not in read_csv(out / "rounds.csv")[0]
    assert json.loads((out / "settings.json").read_text())["part"] == "all"
    assert not list(tmp_path.rglob("features-*"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert simulate(out, *options, "--backbone", "seeing,blind") == 1
    assert "contains a study of one backbone, this study has several" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
