"""The tabs that rankings keep in the Data Manager, in a Label Studio in memory; the real one is in tests/system."""

import json
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import pytest

from contract.scores.sure import Sure
from contract.versions.results import ProjectState, TrainingRecord
from tests.trainer.ranking.rig import held_out
from tests.trainer.scorer import LABELS
from tests.trainer.studio import Aborted
from trainer.labelstudio.tasks import condition
from trainer.ranking import planning
from trainer.ranking.bulk_confirmation import Confirmable
from trainer.ranking.releasing import release
from trainer.tabs.label_issues import LabelIssue

LABELLED = (4, 5, 6)
TRAINED = TrainingRecord(project=ProjectState(5, 3, ""), audit_images=30, audit_share=0.1)


def publish(rig, label_issues=(), **more):
    """A version by whose report these labels are probably wrong, the likeliest first."""
    errors = [
        asdict(LabelIssue(task, ("cat",), ("dog",), (rank + 1) / 100, 0.9)) for rank, task in enumerate(label_issues)
    ]

    def write(folder):
        (folder / "report" / "figures.json").write_text(json.dumps({"label_errors": {"tasks": errors}}))

    rig.publish(write=write, training=replace(TRAINED, **more))


@pytest.fixture
def labelled(rig):
    for task in LABELLED:
        rig.studio.annotate(task, "cat")
    publish(rig)
    return rig


@pytest.fixture
def confident(labelled, monkeypatch):
    """What rankings say that may be confirmed, and of how large a share of it is right the interval's lower end."""
    offered = SimpleNamespace(tasks=set(labelled.unlabelled), low=None)

    def find_confirmable(pool, witnesses, said, asked, *, name, **_):
        labels = {score.task: LABELS.index(score.result[0]["value"]["choices"][0]) for score in pool}
        tasks = {task: labels[task] for task in labels.keys() & offered.tasks - asked.held_out(labels)}
        return Confirmable(Sure(name, 0.98, low=offered.low, tasks=tasks), dict.fromkeys(tasks, "as good as certain"))

    monkeypatch.setattr(planning, "find_confirmable", find_confirmable)
    return offered


def predicted(rig, task):
    [result] = [each["result"] for each in rig.studio.predictions.values() if each["task"] == task and each["result"]]
    return result[0]["value"]["choices"][0]


def views(rig):
    return {data["title"]: data for data in rig.studio.views.values()}


def number_of(rig, title):
    [number] = [number for number, data in rig.studio.views.items() if data["title"] == title]
    return number


def test_what_comes_next_is_shown_in_its_order_without_skipped_tasks_that_are_done(labelled):
    labelled.rank()
    assert list(views(labelled)) == ["Label next", "Default"]
    assert labelled.studio.tabs()["Label next"] == labelled.studio.order()
    tab = views(labelled)["Label next"]
    shown = {"data.image", "data.source", "id", "predictions_score", "predictions_results"}
    assert {f"tasks:{name}" for name in shown}.isdisjoint(tab["hiddenColumns"]["explore"])
    assert "tasks:annotations_results" in tab["hiddenColumns"]["explore"]
    assert len(labelled.studio.tabs()["Default"]) == len(labelled.studio.tasks)
    labelled.studio.annotate(7, "cat", cancelled=True)
    assert 7 in labelled.studio.tabs()["Label next"]
    labelled.studio.project["skip_queue"] = "IGNORE_SKIPPED"
    labelled.rank()
    assert 7 not in labelled.studio.tabs()["Label next"]


def test_other_peoples_tabs_are_left_alone(labelled):
    theirs = {"title": "Label next", "filters": {"conjunction": "or", "items": []}, "ordering": []}
    labelled.studio.views[900] = dict(theirs)
    labelled.rank()
    labelled.rank(tabs=False)
    assert labelled.studio.views == {900: theirs}


def test_labels_that_are_probably_wrong_are_shown_with_what_they_should_be(labelled):
    """The likeliest first. Without tabs the Data Manager is not asked; a released project has none of ours."""
    publish(labelled, label_issues=(6, 4))
    labelled.rank(tabs=False)
    assert not [request for request in labelled.studio.requests if "/dm/" in request.path]
    assert not set(LABELLED) & {each["task"] for each in labelled.studio.predictions.values()}
    labelled.rank()
    assert labelled.studio.tabs()["Look again"] == [6, 4]
    assert predicted(labelled, 6) == "dog"
    assert set(labelled.studio.order()) == set(labelled.unlabelled)
    [region] = next(each["result"] for each in labelled.studio.predictions.values() if each["task"] == 6)
    assert region["meta"]["reason"] == "labelled cat (1 % likely), looks like dog"
    released = release(5, labelled.environment)
    assert released.tabs == 2
    assert set(views(labelled)) == {"Default"}
    assert not (labelled.repository.folder / "tabs" / "5.json").exists()
    assert {each["model_version"] for each in labelled.studio.predictions.values()} == {"yolo"}


def test_a_label_that_a_person_has_looked_at_and_kept_does_not_come_back(labelled):
    publish(labelled, label_issues=(6, 4))
    labelled.rank()
    labelled.studio.edit(6)
    assert labelled.studio.tabs()["Look again"] == [4]
    labelled.rank()
    assert labelled.studio.tabs()["Look again"] == [4]
    assert 6 not in labelled.studio.scores(labelled.version)
    publish(labelled, label_issues=(6, 4))
    labelled.rank()
    assert labelled.studio.tabs()["Look again"] == [4]
    labelled.studio.tasks[4]["annotations"][0]["ground_truth"] = True
    labelled.rank()
    assert "Look again" not in views(labelled)


def test_a_task_that_lost_its_label_gets_a_place(labelled):
    publish(labelled, label_issues=(6, 4))
    labelled.rank()
    labelled.studio.tasks[6]["annotations"].clear()
    labelled.studio.tasks[6]["updated_at"] = labelled.studio.moment()
    labelled.rank()
    [score] = labelled.studio.scores(labelled.version)[6]
    assert score != pytest.approx(0.99)
    assert 6 in labelled.studio.order()
    assert labelled.rank().tasks == 0


def test_the_holdout_is_shown_for_as_long_as_too_little_of_it_is_labelled(labelled):
    publish(labelled, audit_images=29)
    labelled.rank(holdout_share=0.3)
    held = sorted(held_out(labelled.unlabelled, 0.3))
    assert sorted(labelled.studio.tabs()["Random holdout"]) == held != []
    assert "tasks:data.source" in views(labelled)["Random holdout"]["hiddenColumns"]["explore"]
    publish(labelled, audit_images=30)
    labelled.rank(holdout_share=0.3, sure=0)
    assert "Random holdout" not in views(labelled)
    labelled.rank(holdout_share=0.3, sure=0.98, force=True)  # more of it has to be labelled to offer anything by
    assert sorted(labelled.studio.tabs()["Random holdout"]) == held


def test_what_may_be_confirmed_is_shown_by_label(labelled, confident):
    """Not the holdout. It follows the version, while predictions of the one before are still there, too."""
    confident.tasks = set(labelled.unlabelled[::2])
    labelled.rank(holdout_share=0.3)
    tabs = labelled.studio.tabs()
    free = set(labelled.unlabelled[::2]) - held_out(labelled.unlabelled, 0.3)
    for label in ("cat", "dog"):
        assert (
            sorted(tabs[f"Sure: {label}"]) == sorted(task for task in free if predicted(labelled, task) == label) != []
        )
        assert views(labelled)[f"Sure: {label}"]["type"] == "grid"
        assert views(labelled)[f"Sure: {label}"]["selected"] == {"all": True, "list": []}
    dogs = tabs["Sure: dog"]
    publish(labelled)
    confident.tasks = set(dogs[:2])
    labelled.studio.before = lambda request: _refuse(request, "DELETE", "/model-versions")
    labelled.rank(holdout_share=0.3)
    ours = [each for each in labelled.studio.predictions.values() if each["model_version"] != "yolo"]
    assert len([each for each in ours if each["task"] == dogs[2]]) == 2
    assert sorted(labelled.studio.tabs()["Sure: dog"]) == sorted(dogs[:2])
    assert "Sure: cat" not in views(labelled)


def _refuse(request, method, path):
    if request.method == method and path in request.path:
        raise Aborted(503)


@pytest.mark.usefixtures("confident")
def test_what_people_change_in_a_tab_stays(labelled):
    """What names the ranking follows it. A browser that was open for long, and saves a tab as it was, does no harm."""
    labelled.rank(holdout_share=0)
    theirs = condition("id", "greater", 10)
    number = number_of(labelled, "Sure: dog")
    tab = labelled.studio.views[number]
    tab["filters"]["items"].append(theirs)
    tab["gridWidth"], tab["columnsWidth"] = 3, {"tasks:id": 70}
    stale = json.loads(json.dumps(tab))
    tab = views(labelled)["Label next"]
    tab["filters"]["items"], tab["ordering"] = [theirs], ["-tasks:id"]
    before = json.loads(json.dumps(tab))
    publish(labelled)
    labelled.rank(holdout_share=0)
    tab = labelled.studio.views[number]
    assert (tab["gridWidth"], tab["columnsWidth"]) == (3, {"tasks:id": 70})
    assert [each["value"] for each in tab["filters"]["items"]] == [0, f"{labelled.version}/sure/1.", 10]
    assert tab["filters"]["items"][-1] == theirs
    assert views(labelled)["Label next"] == before
    held = labelled.studio.tabs()["Sure: dog"]
    labelled.studio.views[number] = stale
    assert labelled.studio.tabs()["Sure: dog"] == [] != held
    labelled.rank(holdout_share=0)
    assert labelled.studio.tabs()["Sure: dog"] == held


def test_titles_say_how_many_are_right_and_follow_what_is_measured(labelled, confident):
    confident.low = 0.8199
    labelled.rank(holdout_share=0)
    number = number_of(labelled, "Sure: dog ≥81 %")
    labelled.studio.views[number]["gridWidth"] = 3
    for low, title in ((0.93, "Sure: dog ≥93 %"), (0.99, "Sure: dog ≥99 %")):
        publish(labelled)
        confident.low = low
        labelled.rank(holdout_share=0)
        assert labelled.studio.views[number]["title"] == title
        labelled.studio.views[number]["title"] = "Sure: dog ≥81 %"
    assert sorted(views(labelled)) == ["Default", "Label next", "Sure: cat ≥99 %", "Sure: dog ≥81 %"]
    assert labelled.studio.views[number]["gridWidth"] == 3


def test_a_tab_that_was_renamed_is_its_owners_and_one_that_was_deleted_stays_so(labelled):
    labelled.rank()
    views(labelled)["Label next"]["title"] = "Mine"
    labelled.rank()
    assert set(views(labelled)) == {"Mine", "Default", "Label next"}
    del labelled.studio.views[number_of(labelled, "Label next")]
    publish(labelled)
    labelled.rank()
    assert set(views(labelled)) == {"Mine", "Default"}
    labelled.rank(tabs=False)
    labelled.rank()
    assert set(views(labelled)) == {"Mine", "Default", "Label next"}
    release(5, labelled.environment)
    assert set(views(labelled)) == {"Mine", "Default"}


@pytest.mark.usefixtures("confident")
def test_ranked_again_nothing_is_changed(labelled):
    publish(labelled, label_issues=(6, 4), audit_images=3)
    labelled.rank()
    before = json.dumps(labelled.studio.views)
    labelled.studio.requests.clear()
    labelled.rank()
    assert json.dumps(labelled.studio.views) == before
    managed = [request for request in labelled.studio.requests if "/dm/" in request.path]
    assert [request.method for request in managed] == ["GET"]
    assert not [request for request in labelled.studio.requests if "predictions_results" in str(request.path)]


def _changes_tabs(method, path):
    return method != "GET" and "/dm/views" in path


@pytest.mark.parametrize(("fresh", "after"), [(False, False), (False, True), (True, True)])
@pytest.mark.usefixtures("confident")
def test_one_that_is_cut_short_goes_on_where_it_was(labelled, monkeypatch, fresh, after):
    labelled.rank(tabs=False)
    assert "/sure/" not in labelled.dump()
    options, steps, cut = {"holdout_share": 0.3}, 0, True
    while cut:
        steps += 1
        labelled.studio.views.clear()
        (labelled.repository.folder / "tabs" / "5.json").unlink(missing_ok=True)
        if not fresh:
            publish(labelled, audit_images=3)
            labelled.rank(**options)
        publish(labelled, label_issues=(6, 4))
        cut = labelled.run_until(
            steps, monkeypatch, partial(labelled.rank, **options), counts=_changes_tabs, after=after
        )
        labelled.rank(**options)
        tabs = labelled.studio.tabs()
        assert sorted(tabs.keys() - {"Default"}) == ["Label next", "Look again", "Sure: cat", "Sure: dog"]
        assert len(labelled.studio.views) == len(tabs)
        assert tabs["Look again"] == [6, 4]
        assert tabs["Sure: cat"]
        assert tabs["Sure: dog"]
    assert steps == (7 if fresh else 5)


def test_a_ranking_does_not_fail_for_its_tabs(labelled, caplog):
    labelled.studio.before = lambda request: _refuse(request, "POST", "/dm/views")
    labelled.rank()
    labelled.check_whole(labelled.version)
    assert "the project's tabs may be those of an earlier ranking" in caplog.text
    labelled.studio.before = lambda request: None
    labelled.rank()
    assert labelled.studio.tabs()["Label next"] == labelled.studio.order()
