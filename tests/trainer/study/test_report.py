import csv
import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from tests.trainer.report.pages import Page
from tests.trainer.study.studies import change, make_study
from trainer.study.records import Reference
from trainer.study.report import write
from trainer.study.statistics import summarise

pytestmark = pytest.mark.slow  # draws plots

MEASURES = ("macro_f1", "minority_f1", "accuracy")
FILES = {"report.html", "rounds.csv", "classes.csv", "summary.json", "curves.png"}


def report(study, folder):
    write(study, folder)
    return Page(folder / "report.html")


@pytest.fixture(scope="module")
def study():
    return make_study(strategies=["random", "baal-bald", "labelnext", "margin", "core-set"], seeds=3, rounds=5)


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "made"
    write(study, folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page(folder / "report.html")


def test_results_table_agrees_with_the_statistics(study, page):
    result = sorted(summarise(study).items(), key=lambda each: -each[1]["aulc_minority_f1"])
    table = page.table("results")
    assert [*table] == ["strategy", *(strategy for strategy, _ in result)]
    for strategy, each in result:
        row = table[strategy]
        ends, to_random, intervals, seconds = row[:3], row[3:9:2], row[4:9:2], row[9]
        assert ends == [f"{each[f'{measure}_final']:.3f}" for measure in MEASURES]
        assert seconds == f"{each['choose_s'] + each['score_s']:.2f}"
        if strategy != "random":
            differences = [each[f"aulc_{measure}_vs_random"] for measure in MEASURES]
            assert to_random == [f"{difference.mean:+.3f}" for difference in differences]
            assert intervals == [f"{difference.low:+.3f} to {difference.high:+.3f}" for difference in differences]


def test_summary_agrees_with_the_statistics(study, folder, page):
    result = summarise(study)
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(result, default=asdict))
    ratio = result["labelnext"]["label_ratio_minority_f1_vs_random"]
    assert f"labelnext needed {ratio.ratio:.0%} of the labels ({ratio.low:.0%} to {ratio.high:.0%})" in page.words
    assert page.table("labels-needed")["labelnext"][2] == f"{ratio.ratio:.0%}"


def test_reports_label_ratios_to_the_reference(study, tmp_path):
    curves = {measure: ((0.1, 0.3), (0.1, 0.35)) for measure in MEASURES}
    reference = Reference(source="curves of old", labels=(100, 200), **curves)
    result = report(replace(study, reference=reference), tmp_path)
    figures = summarise(replace(study, reference=reference))["labelnext"]
    ratios = [f"{figures[f'label_ratio_{measure}_vs_reference'].ratio:.0%}" for measure in MEASURES[:2]]
    assert f"of the reference, labelnext needed {ratios[1]} of the labels" in result.words
    assert "Reference: curves of old." in result.words
    assert result.html.count(">the reference<") == 3  # in each plot of a measure of the reference
    assert result.table("labels-needed")["labelnext"][4::2] == ratios
    curves = dict.fromkeys(MEASURES, ((0.1, 1.0),))  # never reached
    result = report(replace(study, reference=Reference(source="", labels=(100, 250), **curves)), tmp_path)
    assert result.table("labels-needed")["labelnext"][4:6] == ["> 200%", "above 200%"]


def test_compares_the_default_with_each_rival(page):
    rivals, results = page.table("rivals"), page.table("results")
    assert rivals.keys() == {"other strategy", "random", "baal-bald", "margin", "core-set"}
    assert rivals["random"] == results["labelnext"][3:9]
    assert "labelnextdefault" in (row[0] for row in page.tables["results"])


def test_marks_intervals_that_exclude_zero(tmp_path):
    shifts = {"random": (0, 0, 0), "good": (0.1, 0.1, 0.12), "bad": (-0.1, -0.1, -0.12), "even": (0.1, -0.1, 0.1)}
    study = make_study(strategies=[*shifts], seeds=3, rounds=2)
    page = report(change(study, minority_f1=lambda each: 0.5 + shifts[each.strategy][each.seed]), tmp_path)
    assert [*page.table("results")][1:] == ["good", "even", "random", "bad"]
    for value, marked in (("+0.107", " good"), ("-0.107", " bad"), ("+0.033", "")):
        assert f'<td class="number{marked}">{value}</td>' in page.html


def test_page_describes_data_and_settings(study, page):
    assert (
        "5 strategies queried labels from a pool of 12,408 images of 10 classes (50 to 5,000 each): 100 initial "
        "labels, then 4 rounds up to 500 labels, with 3 seeds."
    ) in page.words
    assert "tested on 2,500 other images" in page.words
    settings = page.table("settings")
    assert settings["learning_rate"] == ["0.004"]
    assert settings["machine"] == [study.settings["machine"]]
    assert [row[0] for row in page.tables["settings"]].count("machine") == 1
    assert study.settings["command"] in page.words


def test_classes_are_listed_rarest_first(study, page):
    ends = [run[-1] for run in study.runs["labelnext"]]
    column = page.tables["labels"][0].index("labelnext")
    labels, f1 = page.tables["labels"][1:-1][::-1], page.tables["classes"][1:][::-1]
    for index, (counted, measured) in enumerate(zip(labels, f1, strict=True)):
        tag = "minority" if index in study.minority else ""
        assert counted[0] == measured[0] == f"class {index}{tag}"
        assert float(counted[column]) == pytest.approx(np.mean([each.labels_by_class[index] for each in ends]), abs=0.5)
        assert measured[column] == f"{np.mean([each.f1[index] for each in ends]):.2f}"


def test_escapes_names(tmp_path):
    hostile = '<script>alert("1")</script>&amp;$x^$'
    study = make_study(strategies=["random", "labelnext"], seeds=2, rounds=2, classes=3)
    settings = {**study.settings, "machine": hostile, hostile: [hostile, 1, None]}
    page = report(replace(study, name=hostile, classes=(hostile, "猫", "</table>"), settings=settings), tmp_path)
    page.assert_closed()
    assert page.tables["classes"][3][0] == hostile
    assert page.table("settings")[hostile] == [f"{hostile}, 1, null"]
    with (tmp_path / "classes.csv").open(encoding="utf-8", newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)][:3] == [hostile, "猫", "</table>"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"strategies": ["random"], "seeds": 1, "rounds": 2},
        {"strategies": ["margin"], "seeds": 1, "rounds": 1, "default": None},
        {"strategies": ["random", "labelnext"], "seeds": 1, "rounds": 3},
        {"strategies": [f"strategy {index}" for index in range(5)], "seeds": 2, "rounds": 2, "default": "unknown"},
    ],
    ids=["random alone", "one round without random", "one seed", "unknown default"],
)
def test_renders_any_study(arguments, tmp_path):
    """Without NaN or None."""
    page = report(make_study(**arguments), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert not {"nan", "None", "inf", "nan%", "inf%"} & {*page.words.split()}
    assert len(page.table("results")) == 1 + len(arguments["strategies"])


def test_of_many_classes_shows_the_rarest_and_largest(tmp_path):
    page = report(make_study(strategies=["random"], seeds=1, rounds=2, classes=100), tmp_path)
    names = [row[0].removesuffix("minority").strip() for row in page.tables["classes"][1:]]
    assert names == [f"class {index}" for index in (*range(99, 89, -1), *range(9, -1, -1))]
    assert "the other 80 are in classes.csv" in page.words
