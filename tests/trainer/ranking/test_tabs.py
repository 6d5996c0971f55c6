"""The tabs of rankings in a fake Data Manager; tests/system uses the real one."""

import json
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import pytest

from contract.scores.sure import Sure
from contract.versions.results import ProjectState, TrainingRecord
from tests.trainer.ranking.project import held_out
from tests.trainer.scorer import LABELS
from tests.trainer.studio import Aborted
from trainer.labelstudio.tasks import condition
from trainer.ranking import planning
from trainer.ranking.bulk_confirmation import Offers
from trainer.ranking.releasing import release
from trainer.tabs.label_issues import LabelIssue

LABELLED = (4, 5, 6)
TRAINED = TrainingRecord(project=ProjectState(5, 3, ""), audit_images=30, audit_share=0.1)


def publish(project, label_issues=(), **fields):
    """Publish a version with label issues of these tasks in its report, the likeliest first."""
    issues = [
        asdict(LabelIssue(task, ("cat",), ("dog",), (rank + 1) / 100, 0.9)) for rank, task in enumerate(label_issues)
    ]

    def write(folder):
        (folder / "report" / "figures.json").write_text(json.dumps({"label_errors": {"tasks": issues}}))

    project.publish(write=write, training=replace(TRAINED, **fields))


@pytest.fixture
def labelled(project):
    for task in LABELLED:
        project.studio.annotate(task, "cat")
    publish(project)
    return project


@pytest.fixture
def confident(labelled, monkeypatch):
    """The tasks that rankings offer for bulk confirmation, and the lower bound of their precision."""
    offered = SimpleNamespace(tasks=set(labelled.unlabelled), low=None)

    def find_offers(pool, holdout_predictions, given, criteria, *, name, **_):
        labels = {score.task: LABELS.index(score.result[0]["value"]["choices"][0]) for score in pool}
        tasks = {task: labels[task] for task in labels.keys() & offered.tasks - criteria.held_out(labels)}
        return Offers(Sure(name, 0.98, low=offered.low, tasks=tasks), dict.fromkeys(tasks, "certain"))

    monkeypatch.setattr(planning, "find_offers", find_offers)
    return offered


def predicted(project, task):
    [result] = [
        each["result"] for each in project.studio.predictions.values() if each["task"] == task and each["result"]
    ]
    return result[0]["value"]["choices"][0]


def views(project):
    return {data["title"]: data for data in project.studio.views.values()}


def number_of(project, title):
    [number] = [number for number, data in project.studio.views.items() if data["title"] == title]
    return number


def test_label_next_has_the_order_without_ignored_skipped_tasks(labelled):
    labelled.rank()
    assert list(views(labelled)) == ["Label next", "Default"]
    assert labelled.studio.tabs()["Label next"] == labelled.studio.order()
    tab = views(labelled)["Label next"]
    columns = {"data.image", "data.source", "id", "predictions_score", "predictions_results"}
    assert {f"tasks:{name}" for name in columns}.isdisjoint(tab["hiddenColumns"]["explore"])
    assert "tasks:annotations_results" in tab["hiddenColumns"]["explore"]
    assert len(labelled.studio.tabs()["Default"]) == len(labelled.studio.tasks)
    labelled.studio.annotate(7, "cat", cancelled=True)
    assert 7 in labelled.studio.tabs()["Label next"]
    labelled.studio.project["skip_queue"] = "IGNORE_SKIPPED"
    labelled.rank()
    assert 7 not in labelled.studio.tabs()["Label next"]


def test_tabs_of_users_are_not_changed(labelled):
    tab = {"title": "Label next", "filters": {"conjunction": "or", "items": []}, "ordering": []}
    labelled.studio.views[900] = dict(tab)
    labelled.rank()
    labelled.rank(tabs=False)
    assert labelled.studio.views == {900: tab}


def test_no_tabs_makes_no_request_to_the_data_manager(labelled):
    publish(labelled, label_issues=(6, 4))
    labelled.rank(tabs=False)
    assert not [request for request in labelled.studio.requests if "/dm/" in request.path]
    assert not set(LABELLED) & {each["task"] for each in labelled.studio.predictions.values()}


def test_look_again_has_probable_label_errors_with_suggestions(labelled):
    """The likeliest first."""
    publish(labelled, label_issues=(6, 4))
    labelled.rank()
    assert labelled.studio.tabs()["Look again"] == [6, 4]
    assert predicted(labelled, 6) == "dog"
    assert set(labelled.studio.order()) == set(labelled.unlabelled)
    [region] = next(each["result"] for each in labelled.studio.predictions.values() if each["task"] == 6)
    assert region["meta"]["reason"] == "labelled cat (1 % likely), looks like dog"


def test_release_removes_our_tabs(labelled):
    publish(labelled, label_issues=(6, 4))
    labelled.rank()
    released = release(5, labelled.environment)
    assert released.tabs == 2
    assert set(views(labelled)) == {"Default"}
    assert not (labelled.repository.folder / "tabs" / "5.json").exists()
    assert {each["model_version"] for each in labelled.studio.predictions.values()} == {"yolo"}


def test_a_reviewed_label_is_not_listed_again(labelled):
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


def test_a_task_that_lost_its_label_is_ranked(labelled):
    publish(labelled, label_issues=(6, 4))
    labelled.rank()
    labelled.studio.tasks[6]["annotations"].clear()
    labelled.studio.tasks[6]["updated_at"] = labelled.studio.timestamp()
    labelled.rank()
    [score] = labelled.studio.scores(labelled.version)[6]
    assert score != pytest.approx(0.99)
    assert 6 in labelled.studio.order()
    assert labelled.rank().tasks == 0


def test_the_holdout_has_a_tab_until_enough_of_it_is_labelled(labelled):
    publish(labelled, audit_images=29)
    labelled.rank(holdout_share=0.3)
    holdout = sorted(held_out(labelled.unlabelled, 0.3))
    assert sorted(labelled.studio.tabs()["Random holdout"]) == holdout != []
    assert "tasks:data.source" in views(labelled)["Random holdout"]["hiddenColumns"]["explore"]
    publish(labelled, audit_images=30)
    labelled.rank(holdout_share=0.3, sure=0)
    assert "Random holdout" not in views(labelled)
    labelled.rank(holdout_share=0.3, sure=0.98, force=True)  # offers require more labels
    assert sorted(labelled.studio.tabs()["Random holdout"]) == holdout


def test_offered_tasks_have_a_tab_for_each_label(labelled, confident):
    """Without the holdout. Remaining predictions of the previous version do not match."""
    confident.tasks = set(labelled.unlabelled[::2])
    labelled.rank(holdout_share=0.3)
    tabs = labelled.studio.tabs()
    offered = set(labelled.unlabelled[::2]) - held_out(labelled.unlabelled, 0.3)
    for label in ("cat", "dog"):
        assert (
            sorted(tabs[f"Sure: {label}"])
            == sorted(task for task in offered if predicted(labelled, task) == label)
            != []
        )
        assert views(labelled)[f"Sure: {label}"]["type"] == "grid"
        assert views(labelled)[f"Sure: {label}"]["selected"] == {"all": True, "list": []}
    dogs = tabs["Sure: dog"]
    publish(labelled)
    confident.tasks = set(dogs[:2])
    labelled.studio.before = lambda request: _refuse(request, "DELETE", "/model-versions")
    labelled.rank(holdout_share=0.3)
    own = [each for each in labelled.studio.predictions.values() if each["model_version"] != "yolo"]
    assert len([each for each in own if each["task"] == dogs[2]]) == 2
    assert sorted(labelled.studio.tabs()["Sure: dog"]) == sorted(dogs[:2])
    assert "Sure: cat" not in views(labelled)


def _refuse(request, method, path):
    if request.method == method and path in request.path:
        raise Aborted(503)


@pytest.mark.usefixtures("confident")
def test_changes_by_users_are_kept(labelled):
    """Our filters follow the ranking, even if a browser has restored old ones."""
    labelled.rank(holdout_share=0)
    user_filter = condition("id", "greater", 10)
    number = number_of(labelled, "Sure: dog")
    tab = labelled.studio.views[number]
    tab["filters"]["items"].append(user_filter)
    tab["gridWidth"], tab["columnsWidth"] = 3, {"tasks:id": 70}
    stale = json.loads(json.dumps(tab))
    tab = views(labelled)["Label next"]
    tab["filters"]["items"], tab["ordering"] = [user_filter], ["-tasks:id"]
    before = json.loads(json.dumps(tab))
    publish(labelled)
    labelled.rank(holdout_share=0)
    tab = labelled.studio.views[number]
    assert (tab["gridWidth"], tab["columnsWidth"]) == (3, {"tasks:id": 70})
    assert [each["value"] for each in tab["filters"]["items"]] == [0, f"{labelled.version}/sure/1.", 10]
    assert tab["filters"]["items"][-1] == user_filter
    assert views(labelled)["Label next"] == before
    tasks = labelled.studio.tabs()["Sure: dog"]
    labelled.studio.views[number] = stale
    assert labelled.studio.tabs()["Sure: dog"] == [] != tasks
    labelled.rank(holdout_share=0)
    assert labelled.studio.tabs()["Sure: dog"] == tasks


def test_titles_show_the_current_precision(labelled, confident):
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


def test_renamed_tabs_belong_to_users_and_deleted_ones_stay_deleted(labelled):
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
def test_ranking_again_changes_nothing(labelled):
    publish(labelled, label_issues=(6, 4), audit_images=3)
    labelled.rank()
    before = json.dumps(labelled.studio.views)
    labelled.studio.requests.clear()
    labelled.rank()
    assert json.dumps(labelled.studio.views) == before
    requests = [request for request in labelled.studio.requests if "/dm/" in request.path]
    assert [request.method for request in requests] == ["GET"]
    assert not [request for request in labelled.studio.requests if "predictions_results" in str(request.path)]


def _changes_tabs(method, path):
    return method != "GET" and "/dm/views" in path


@pytest.mark.parametrize(("fresh", "after"), [(False, False), (False, True), (True, True)])
@pytest.mark.usefixtures("confident")
def test_tabs_are_complete_after_a_kill_at_any_change(labelled, monkeypatch, fresh, after):
    labelled.rank(tabs=False)
    assert "/sure/" not in labelled.dump()
    options, steps, killed = {"holdout_share": 0.3}, 0, True
    while killed:
        steps += 1
        labelled.studio.views.clear()
        (labelled.repository.folder / "tabs" / "5.json").unlink(missing_ok=True)
        if not fresh:
            publish(labelled, audit_images=3)
            labelled.rank(**options)
        publish(labelled, label_issues=(6, 4))
        killed = labelled.run_until(
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


def test_a_ranking_succeeds_if_tabs_cannot_be_updated(labelled, caplog):
    labelled.studio.before = lambda request: _refuse(request, "POST", "/dm/views")
    labelled.rank()
    labelled.check_ranked_by(labelled.version)
    assert "cannot update the project's tabs" in caplog.text
    labelled.studio.before = lambda request: None
    labelled.rank()
    assert labelled.studio.tabs()["Label next"] == labelled.studio.order()
