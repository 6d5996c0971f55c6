import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.study.studies import make_study
from trainer.study.records import Round, save
from trainer.study.report import write
from trainer.study.statistics import area, summarise

ROOT = Path(__file__).parents[3]
FILES = {"report.html", "rounds.csv", "classes.csv", "summary.json", "curves.png"}
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Rows of tables by their id, all text, and all attributes; refuses tags that do not close in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tables, self.text, self.attributes, self.scripts = [], {}, [], [], 0
        self.rows = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        self.scripts += tag == "script"
        if tag == "table":
            self.rows = self.tables[dict(attrs)["id"]] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += " ".join(data.split())

    def table(self, name):
        """Return the rows that begin with a name, by name."""
        return {row[0].removesuffix("default").removesuffix("minority").strip(): row[1:] for row in self.tables[name]}

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def report(study, folder):
    write(study, folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


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
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_there_are_five_files_in_a_folder_that_is_made(folder):
    """No more, so that a report can be copied as it is."""
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_rounds_csv_holds_every_round(study, folder):
    """With all that a round says but what it says of each class."""
    rows = read_csv(folder / "rounds.csv")
    assert len(rows) == len(study.rounds)
    assert list(rows[0]) == [field.name for field in fields(Round) if field.name not in {"labels_by_class", "f1"}]
    for row, each in zip(rows, study.rounds, strict=True):
        assert (row["strategy"], int(row["seed"]), int(row["round"])) == (each.strategy, each.seed, each.round)
        assert float(row["nll"]) == each.nll


def test_classes_csv_holds_every_class_of_every_round(study, folder):
    """Each with its labels and its F1."""
    rows = read_csv(folder / "classes.csv")
    assert list(rows[0]) == ["strategy", "seed", "round", "labels", "class", "labels_of_class", "f1"]
    assert len(rows) == len(study.rounds) * len(study.classes)
    last = study.rounds[-1]
    assert [float(row["f1"]) for row in rows[-len(study.classes) :]] == list(last.f1)
    assert [int(row["labels_of_class"]) for row in rows[-len(study.classes) :]] == list(last.labels_by_class)


def test_the_first_table_says_what_rounds_csv_says(folder, page):
    """Figures at the end and areas, computed from the file alone."""
    rows = read_csv(folder / "rounds.csv")
    table = page.table("results")

    def values(strategy, name):
        seeds = sorted({row["seed"] for row in rows})
        return np.array(
            [[float(row[name]) for row in rows if (row["strategy"], row["seed"]) == (strategy, seed)] for seed in seeds]
        )

    def areas(strategy, name):
        labels = values(strategy, "labels")
        return np.array(list(map(area, labels, values(strategy, name))))

    for strategy in ("random", "baal-bald", "labelnext", "margin", "core-set"):
        macro, minority, _, _, to_random, _, accuracy, _, seconds = table[strategy]
        assert macro == f"{values(strategy, 'macro_f1')[:, -1].mean():.3f}"
        assert minority == f"{values(strategy, 'minority_f1')[:, -1].mean():.3f}"
        took = (values(strategy, "choose_s") + values(strategy, "score_s"))[:, :-1].mean()
        assert seconds == f"{took:.2f}"
        if strategy != "random":
            assert to_random == f"{(areas(strategy, 'minority_f1') - areas('random', 'minority_f1')).mean():+.3f}"
            assert accuracy == f"{(areas(strategy, 'accuracy') - areas('random', 'accuracy')).mean():+.3f}"
    order = sorted(table.keys() - {"strategy"}, key=lambda name: -areas(name, "minority_f1").mean())
    assert [name for name in table if name != "strategy"] == order


def test_the_summary_is_that_of_the_statistics(study, folder, page):
    """In summary.json and in the sentence that begins the page."""
    document = json.loads((folder / "summary.json").read_text())
    found = {each.strategy: each for each in summarise(study)}
    assert list(document) == list(found)
    ratio = found["labelnext"].label_ratios["minority_f1"]
    assert document["labelnext"]["label_ratio_vs_random"] == ratio.ratio
    assert f"labelnext needed {ratio.ratio:.0%} of the labels ({ratio.low:.0%} to {ratio.high:.0%})" in page.words
    assert page.table("results")["labelnext"][2] == f"{ratio.ratio:.0%}"


def test_the_default_is_held_against_each_rival(page):
    """In a table of its own, in which it does not stand itself."""
    duels, results = page.table("duels"), page.table("results")
    assert duels.keys() == {"against", "random", "baal-bald", "margin", "core-set"}
    assert duels["random"][:2] == results["labelnext"][4:6]
    assert "labelnextdefault" in (row[0] for row in page.tables["results"])


def test_an_interval_that_leaves_out_zero_is_marked(tmp_path):
    """Green above, red below, and nothing where zero lies inside."""
    study = make_study(strategies=["random", "good", "bad", "even"], seeds=3, rounds=2)
    shifts = {"random": (0, 0, 0), "good": (0.1, 0.1, 0.12), "bad": (-0.1, -0.1, -0.12), "even": (0.1, -0.1, 0.1)}
    shifted = ((each, shifts[each.strategy][each.seed]) for each in study.rounds)
    rounds = (replace(each, minority_f1=0.5 + shift, macro_f1=0.5 - shift) for each, shift in shifted)
    write(replace(study, rounds=tuple(rounds)), tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert re.findall(r'<th scope="row">(\w+)</th>', html)[:4] == ["good", "even", "random", "bad"]
    for value, marked in (("+0.107", " good"), ("-0.107", " bad"), ("+0.033", "")):
        assert f'<td class="number{marked}">{value}</td>' in html


def test_the_page_says_what_was_done(study, page):
    """Pool, classes, their imbalance, labels, rounds, seeds, test images, settings, machine and command."""
    assert (
        "12,408 images of 10 classes (the largest has 5,000, the smallest 50) were hidden, and 5 strategies asked for "
        "some of them: 100 at first, the same for all strategies of a seed, then 100 a round for 4 rounds, with 3 "
        "seeds."
    ) in page.words
    assert "measured on 2,500 images that no strategy could ask for" in page.words
    settings = page.table("settings")
    assert settings["learning_rate"] == ["0.004"]
    assert settings["machine"] == [study.machine]
    assert [row[0] for row in page.tables["settings"]].count("machine") == 1
    assert study.settings["command"] in page.words


def test_the_classes_stand_rarest_first(study, page):
    """Labels and F1 at the end, as means over seeds."""
    ends = [each for each in study.rounds if each.strategy == "labelnext" and each.round == 4]
    column = page.tables["labels"][0].index("labelnext")
    assert [row[0].removesuffix("minority").strip() for row in page.tables["labels"][1:-1]] == list(study.classes[::-1])
    for index, row in enumerate(page.tables["labels"][1:-1][::-1]):
        assert float(row[column]) == pytest.approx(np.mean([each.labels_by_class[index] for each in ends]), abs=0.5)
        assert ("minority" in row[0]) == (index in study.minority)
    for index, row in enumerate(page.tables["classes"][1:][::-1]):
        assert row[column] == f"{np.mean([each.f1[index] for each in ends]):.2f}"


def test_passes_are_compared_by_seed_and_in_the_mean(study, page):
    """A row for each, and a last one for each number of passes."""
    rows = page.tables["passes"][1:]
    assert len(rows) == len(study.agreement) + 2
    mean = np.mean([each.spearman for each in study.agreement if each.passes == 20])
    assert rows[-2] == ["20", "mean", "", f"{mean:.3f}", "55%"]


def test_the_page_needs_nothing_but_itself(page, folder):
    """No script, nothing to load, and no address but the names of XML's namespaces."""
    html = (folder / "report.html").read_text()
    assert page.scripts == 0
    assert all(value.startswith("#") for name, value in page.attributes if name in {"href", "xlink:href", "src"})
    addresses = [value for name, value in page.attributes if value and "//" in value and not name.startswith("xmlns")]
    assert addresses == []
    assert set(re.findall(r"url\((?!#)[^)]*\)", html)) == set()
    assert "<!DOCTYPE" not in html.partition("<html")[2]


def test_the_same_study_gives_the_same_files(study, folder, tmp_path):
    """In a process with other hashes as well."""
    save(study, tmp_path)
    code = (
        "import sys; from pathlib import Path; from trainer.study.records import load; "
        "from trainer.study.report import write; write(load(Path(sys.argv[1])), Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT, env=environment, timeout=100)
    for name in FILES:
        digests = [hashlib.sha256((each / name).read_bytes()).hexdigest() for each in (folder, tmp_path)]
        assert digests[0] == digests[1], name


def test_names_are_text_and_nothing_else(tmp_path):
    """Whatever a class, a study or a setting is called, the page shows it and obeys nothing of it."""
    hostile = '<script>alert("1")</script>&amp;$x^$'
    study = make_study(strategies=["random", "labelnext"], seeds=2, rounds=2, classes=3)
    study = replace(
        study,
        name=hostile,
        classes=(hostile, "猫", "</table>"),
        machine=hostile,
        settings={**study.settings, hostile: [hostile, 1, None]},
    )
    page = report(study, tmp_path)
    assert page.scripts == 0
    assert page.tables["classes"][3][0] == hostile
    assert page.table("settings")[hostile] == [f"{hostile}, 1, null"]
    assert [row["class"] for row in read_csv(tmp_path / "classes.csv")[:3]] == [hostile, "猫", "</table>"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"strategies": ["random"], "seeds": 1, "rounds": 2},
        {"strategies": ["margin"], "seeds": 1, "rounds": 1, "default": None},
        {"strategies": ["margin", "bald"], "seeds": 2, "rounds": 2},
        {"strategies": ["random", "labelnext"], "seeds": 1, "rounds": 3},
        {"strategies": ["random", "labelnext"], "seeds": 2, "rounds": 2, "classes": 2},
        {"strategies": ["random", "labelnext"], "seeds": 2, "rounds": 2, "classes": 100},
        {"strategies": [f"strategy {index}" for index in range(9)], "seeds": 2, "rounds": 2, "default": "unheard of"},
    ],
    ids=["random alone", "one round", "no random", "one seed", "2 classes", "100 classes", "nobody known"],
)
def test_any_study_gives_a_page(arguments, tmp_path):
    """What it lacks is left out, without a NaN or a None to be read."""
    page = report(make_study(**arguments), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert not {"nan", "None", "inf", "nan%", "inf%"} & {*page.words.split()}
    assert len(page.table("results")) == 1 + len(arguments["strategies"])


def test_of_many_classes_the_rarest_and_the_largest_are_shown(tmp_path):
    """And how many are not."""
    page = report(make_study(strategies=["random"], seeds=1, rounds=2, classes=100), tmp_path)
    names = [row[0].removesuffix("minority").strip() for row in page.tables["classes"][1:]]
    assert names == [f"class {index}" for index in (*range(99, 89, -1), *range(9, -1, -1))]
    assert "the other 80 are in classes.csv" in page.words


def test_a_study_that_was_interrupted_says_what_it_leaves_out(tmp_path):
    """By strategy and seed, and how far each chain came."""
    study = make_study(strategies=["random", "labelnext", "bald"], seeds=3, rounds=4)
    cut = tuple(
        each
        for each in study.rounds
        if (each.strategy != "bald" or each.seed == 0) and (each.strategy, each.seed, each.round) != ("labelnext", 1, 3)
    )
    page = report(replace(study, rounds=cut), tmp_path)
    assert (
        "Left out, because they had not ended: labelnext, seed 1 (3 of 4 rounds); "
        "bald, seed 1 (not begun), seed 2 (not begun)."
    ) in page.words
    assert [page.table("results")[name][0] for name in ("random", "labelnext", "bald")] == ["3", "2", "1"]


def test_a_strategy_without_a_whole_chain_has_no_row(tmp_path):
    """It is named beside the table, even if it is the default."""
    study = make_study(strategies=["random", "labelnext"], seeds=2, rounds=3)
    page = report(
        replace(study, rounds=tuple(each for each in study.rounds if each.strategy == "random" or each.round < 2)),
        tmp_path,
    )
    assert page.table("results").keys() == {"strategy", "random"}
    assert "labelnext, seed 0 (2 of 3 rounds), seed 1 (2 of 3 rounds)." in page.words


def test_a_model_that_diverged_spoils_no_other_figure(tmp_path):
    """Its NLL is not a number, which JSON has no word for; the page stands."""
    study = make_study(strategies=["random", "labelnext"], seeds=2, rounds=3)
    rounds = (replace(each, nll=float("nan") if each.strategy == "labelnext" else each.nll) for each in study.rounds)
    page = report(replace(study, rounds=tuple(rounds)), tmp_path)
    assert len(page.table("results")) == 3
    assert json.loads((tmp_path / "summary.json").read_text())["labelnext"]["nll_final"] is None
