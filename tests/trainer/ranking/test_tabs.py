"""The tabs that rankings keep in the Data Manager, in a Label Studio in memory; the real one is in tests/system."""

import json
from dataclasses import replace

import numpy as np
import pytest

from contract.label_studio import LabelStudioClient
from contract.scores.holdout import is_held_out
from contract.scores.sure import Sure
from contract.versions.results import ProjectState, TrainingRecord
from tests.trainer.ranking.rig import raise_killed
from tests.trainer.studio import Gone
from trainer.labelstudio.tasks import condition
from trainer.ranking import planning
from trainer.ranking.releasing import release

LABELLED = (4, 5, 6)
TRAINED = TrainingRecord(project=ProjectState(5, 3, ""), audit_images=30, audit_share=0.1)


def publish(rig, doubted=(), **more):
    """A version by whose report these labels are probably wrong, the likeliest first."""
    errors = [
        {
            "task": task,
            "given": ["cat"],
            "suggested": ["dog"],
            "given_probability": (rank + 1) / 100,
            "suggested_probability": 0.9,
        }
        for rank, task in enumerate(doubted)
    ]

    def write(folder):
        (folder / "report" / "figures.json").write_text(json.dumps({"label_errors": {"tasks": errors}}))

    rig.publish(write=write, training=replace(TRAINED, **more))


@pytest.fixture
def labelled(rig):
    """Some pictures are labelled as cats, and all has been trained on."""
    for task in LABELLED:
        rig.studio.annotate(task, "cat")
    publish(rig)
    return rig


class Confident(dict):
    """What may be confirmed: tasks by why."""

    low = None
    """The lower end of the interval of the share of them that is right."""


@pytest.fixture
def confident(monkeypatch):
    """What rankings say that may be confirmed."""
    found = Confident()

    original = planning._arrange

    def arrange(context, manifest, name, former):
        plan, failures = original(context, manifest, name, former)
        items = [
            replace(each, sure="as good as certain") if each.task in found and not each.held_out else each
            for each in plan.items
        ]
        labels = {each.task: each.result[0]["value"]["choices"][0] for each in items if each.sure}
        tasks = {task: context.control.labels.index(label) for task, label in labels.items()}
        sure = replace(plan.sure or Sure(name, 0.98), low=found.low, tasks=tasks)
        return replace(plan, items=tuple(items), sure=sure), failures

    monkeypatch.setattr(planning, "_arrange", arrange)
    return found


def predicted(rig, task):
    [result] = [each["result"] for each in rig.studio.predictions.values() if each["task"] == task and each["result"]]
    return result[0]["value"]["choices"][0]


def views(rig):
    return {data["title"]: data for data in rig.studio.views.values()}


def number_of(rig, title):
    [number] = [number for number, data in rig.studio.views.items() if data["title"] == title]
    return number


def test_what_comes_next_is_shown_in_its_order(labelled):
    """With its score and its prediction, which says why; behind it what Label Studio would show without us."""
    labelled.rank()
    assert list(views(labelled)) == ["Label next", "Default"]
    assert labelled.studio.tabs()["Label next"] == labelled.studio.order()
    tab = views(labelled)["Label next"]
    shown = {
        "tasks:data.image",
        "tasks:data.source",
        "tasks:id",
        "tasks:predictions_score",
        "tasks:predictions_results",
    }
    assert shown.isdisjoint(tab["hiddenColumns"]["explore"])
    assert "tasks:annotations_results" in tab["hiddenColumns"]["explore"]
    assert len(labelled.studio.tabs()["Default"]) == len(labelled.studio.tasks)


def test_other_peoples_tabs_are_left_alone(labelled):
    """Even one of the same title; ours come behind them."""
    theirs = {"title": "Label next", "filters": {"conjunction": "or", "items": []}, "ordering": []}
    labelled.studio.views[900] = dict(theirs)
    labelled.rank()
    labelled.rank(tabs=False)
    assert labelled.studio.views == {900: theirs}


def test_labels_that_are_probably_wrong_are_shown_with_what_they_should_be(labelled):
    """The likeliest first; nothing of it is in the way of the order."""
    publish(labelled, doubted=(6, 4))
    labelled.rank()
    assert labelled.studio.tabs()["Look again"] == [6, 4]
    assert predicted(labelled, 6) == "dog"
    assert set(labelled.studio.order()) == set(labelled.unlabelled)
    [region] = next(each["result"] for each in labelled.studio.predictions.values() if each["task"] == 6)
    assert region["meta"]["reason"] == "labelled cat (1 % likely), looks like dog"


def test_a_label_that_a_person_has_looked_at_and_kept_does_not_come_back(labelled):
    """It leaves when it is saved again, not only with the next version."""
    publish(labelled, doubted=(6, 4))
    labelled.rank()
    labelled.studio.edit(6)
    assert labelled.studio.tabs()["Look again"] == [4]
    labelled.rank()
    assert labelled.studio.tabs()["Look again"] == [4]
    publish(labelled, doubted=(6, 4))
    labelled.rank()
    assert labelled.studio.tabs()["Look again"] == [4]
    labelled.studio.tasks[4]["annotations"][0]["ground_truth"] = True
    labelled.rank()
    assert "Look again" not in views(labelled)


def test_a_task_that_lost_its_label_gets_a_place(labelled):
    """What was said of its label is no score of its own."""
    publish(labelled, doubted=(6, 4))
    labelled.rank()
    labelled.studio.tasks[6]["annotations"].clear()
    labelled.studio.tasks[6]["updated_at"] = labelled.studio.moment()
    labelled.rank()
    [score] = labelled.studio.scores(labelled.version)[6]
    assert score != pytest.approx(0.99)
    assert 6 in labelled.studio.order()
    assert labelled.rank().tasks == 0


def test_the_holdout_is_shown_for_as_long_as_too_little_of_it_is_labelled(labelled):
    """Its predictions are those without a label."""
    publish(labelled, audit_images=29)
    labelled.rank(holdout_share=0.3)
    held = [task for task in labelled.unlabelled if is_held_out(5, np.array([task]), 0.3)[0]]
    assert sorted(labelled.studio.tabs()["Random holdout"]) == held != []
    assert "tasks:data.source" in views(labelled)["Random holdout"]["hiddenColumns"]["explore"]
    publish(labelled, audit_images=30)
    labelled.rank(holdout_share=0.3, sure=0)
    assert "Random holdout" not in views(labelled)
    labelled.rank(holdout_share=0.3, sure=0.98, force=True)  # more of it has to be labelled to offer anything by
    assert sorted(labelled.studio.tabs()["Random holdout"]) == held


def test_what_may_be_confirmed_is_shown_by_label(labelled, confident):
    """In a grid a label, which names what to look at; tasks of the holdout are not among them."""
    confident.update(dict.fromkeys(labelled.unlabelled[::2]))
    labelled.rank(holdout_share=0.3)
    tabs = labelled.studio.tabs()
    for label in ("cat", "dog"):
        held = is_held_out(5, np.array(labelled.unlabelled[::2]), 0.3)
        free = [task for task, out in zip(labelled.unlabelled[::2], held, strict=True) if not out]
        assert sorted(tabs[f"Sure: {label}"]) == [task for task in free if predicted(labelled, task) == label] != []
        assert views(labelled)[f"Sure: {label}"]["type"] == "grid"
        assert views(labelled)[f"Sure: {label}"]["selected"] == {"all": True, "list": []}


def test_what_is_sure_follows_the_version(labelled, confident):
    """While predictions of the one before are still there, too; a tab that would be empty goes."""
    confident.update(dict.fromkeys(labelled.unlabelled))
    labelled.rank(holdout_share=0)
    before = labelled.studio.tabs()
    dogs = before["Sure: dog"]
    publish(labelled)
    confident.clear()
    confident.update(dict.fromkeys(dogs[:2]))
    labelled.studio.before = lambda request: _refuse(request, "DELETE", "/model-versions")
    labelled.rank(holdout_share=0)
    ours = [each for each in labelled.studio.predictions.values() if each["model_version"] != "yolo"]
    assert len([each for each in ours if each["task"] == dogs[2]]) == 2
    assert sorted(labelled.studio.tabs()["Sure: dog"]) == sorted(dogs[:2])
    assert "Sure: cat" not in views(labelled)


def _refuse(request, method, path):
    if request.method == method and path in request.path:
        raise Gone(503)


def test_what_people_change_in_a_tab_stays(labelled, confident):
    """Columns, widths and what they filter by beside us; what names the ranking follows."""
    confident.update(dict.fromkeys(labelled.unlabelled))
    labelled.rank(holdout_share=0)
    tab = labelled.studio.views[number_of(labelled, "Sure: dog")]
    theirs = condition("id", "greater", 10)
    tab["filters"]["items"].append(theirs)
    tab["gridWidth"], tab["columnsWidth"] = 3, {"tasks:id": 70}
    publish(labelled)
    labelled.rank(holdout_share=0)
    tab = labelled.studio.views[number_of(labelled, "Sure: dog")]
    assert tab["filters"]["items"][-1] == theirs
    assert (tab["gridWidth"], tab["columnsWidth"]) == (3, {"tasks:id": 70})
    assert [each["value"] for each in tab["filters"]["items"]] == [0, f"{labelled.version}/sure/1.", 10]


def test_a_browser_that_was_open_for_long_puts_nothing_back(labelled, confident):
    """It saves a tab with the filters that it knows: of an earlier ranking, which hold no task any more."""
    confident.update(dict.fromkeys(labelled.unlabelled))
    labelled.rank(holdout_share=0)
    number = number_of(labelled, "Sure: dog")
    stale = json.loads(json.dumps(labelled.studio.views[number]))
    publish(labelled)
    labelled.rank(holdout_share=0)
    held = labelled.studio.tabs()["Sure: dog"]
    labelled.studio.views[number] = stale
    assert labelled.studio.tabs()["Sure: dog"] == [] != held
    labelled.rank(holdout_share=0)
    assert labelled.studio.tabs()["Sure: dog"] == held


def test_titles_say_how_many_are_right_and_follow_what_is_measured(labelled, confident):
    """Never more than that; a browser that puts an earlier title back does not make the tab its owner's."""
    confident.update(dict.fromkeys(labelled.unlabelled))
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
    labelled.studio.views[number]["title"] = "Mine ≥81 %"
    publish(labelled)
    labelled.rank(holdout_share=0)
    assert {"Mine ≥81 %", "Sure: dog ≥99 %"} <= set(views(labelled))


def test_filters_that_people_change_stay_if_nothing_must_follow(labelled):
    """What comes next is found by no ranking's name."""
    labelled.rank()
    tab = labelled.studio.views[number_of(labelled, "Label next")]
    tab["filters"]["items"] = [condition("id", "greater", 10)]
    tab["ordering"] = ["-tasks:id"]
    before = json.loads(json.dumps(tab))
    publish(labelled)
    labelled.rank()
    assert labelled.studio.views[number_of(labelled, "Label next")] == before


def test_a_tab_that_was_renamed_is_its_owners(labelled):
    """It stays, and another is made."""
    labelled.rank()
    number = number_of(labelled, "Label next")
    labelled.studio.views[number]["title"] = "Mine"
    labelled.rank()
    assert set(views(labelled)) == {"Mine", "Default", "Label next"}
    release(5, labelled.environment)
    assert set(views(labelled)) == {"Mine", "Default"}


def test_a_tab_that_was_deleted_stays_so(labelled):
    """Until rankings without tabs have put an end to ours."""
    labelled.rank()
    del labelled.studio.views[number_of(labelled, "Label next")]
    labelled.rank()
    publish(labelled)
    labelled.rank()
    assert set(views(labelled)) == {"Default"}
    labelled.rank(tabs=False)
    labelled.rank()
    assert set(views(labelled)) == {"Default", "Label next"}


def test_a_project_that_bears_the_number_of_another_gets_tabs_of_its_own(labelled):
    """As in a Label Studio that was set up anew, beside a repository that was not."""
    labelled.rank()
    labelled.studio.views.clear()
    labelled.studio.project["created_at"] = "2026-12-01T00:00:00.000001Z"
    labelled.rank()
    assert set(views(labelled)) == {"Default", "Label next"}


def test_ranked_again_nothing_is_changed(labelled, confident):
    """And little is asked."""
    publish(labelled, doubted=(6, 4), audit_images=3)
    confident.update(dict.fromkeys(labelled.unlabelled))
    labelled.rank()
    before = json.dumps(labelled.studio.views)
    labelled.studio.requests.clear()
    labelled.rank()
    assert json.dumps(labelled.studio.views) == before
    managed = [request for request in labelled.studio.requests if "/dm/" in request.path]
    assert [request.method for request in managed] == ["GET"]
    assert not [request for request in labelled.studio.requests if "predictions_results" in str(request.path)]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fresh", [False, True], ids=["changed", "made"])
def test_one_that_is_cut_short_goes_on_where_it_was(labelled, confident, monkeypatch, fresh, after):
    """At whichever change of tabs, before it or after it: none is made twice, forgotten or left behind."""
    confident.update(dict.fromkeys(labelled.unlabelled))
    labelled.rank(tabs=False)
    steps = []
    for step in range(1, 20):
        labelled.studio.views.clear()
        (labelled.repository.folder / "tabs" / "5.json").unlink(missing_ok=True)
        if not fresh:
            publish(labelled, audit_images=3)
            labelled.rank(holdout_share=0.3, sure=0)
        publish(labelled, doubted=(6, 4))
        steps.append(_rank_until(step, labelled, monkeypatch, after=after))
        labelled.rank(holdout_share=0.3, sure=0)
        tabs = labelled.studio.tabs()
        assert sorted(tabs.keys() - {"Default"}) == ["Label next", "Look again", "Sure: cat", "Sure: dog"]
        assert len(labelled.studio.views) == len(tabs)
        assert tabs["Look again"] == [6, 4]
        assert tabs["Sure: cat"]
        assert tabs["Sure: dog"]
        if not steps[-1]:
            break
    assert sum(steps) == (6 if fresh else 4)


def _rank_until(step, rig, monkeypatch, *, after):
    """Have the process end at a change of tabs; return whether there were so many."""
    changes = iter(range(1, 1000))
    send = LabelStudioClient._exchange

    def exchange(client, request, authorization):
        ends = "/dm/views" in request.path and request.method != "GET" and next(changes) == step
        if ends and not after:
            raise_killed()
        answer = send(client, request, authorization)
        if ends:
            raise_killed()
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(LabelStudioClient, "_exchange", exchange)
        try:
            rig.rank(holdout_share=0.3, sure=0)
        except BaseException as err:
            if type(err).__name__ != "Killed":
                raise
            return True
    return False


def test_a_ranking_does_not_fail_for_its_tabs(labelled, caplog):
    """The next one mends them."""
    labelled.studio.before = lambda request: _refuse(request, "POST", "/dm/views")
    labelled.rank()
    labelled.check_whole(labelled.version)
    assert "the project's tabs may be those of an earlier ranking" in caplog.text
    labelled.studio.before = lambda request: None
    labelled.rank()
    assert labelled.studio.tabs()["Label next"] == labelled.studio.order()


def test_a_released_project_has_none_of_our_tabs(labelled):
    """Nor is anything remembered of them."""
    publish(labelled, doubted=(6, 4))
    labelled.rank()
    released = release(5, labelled.environment)
    assert released.tabs == 2
    assert set(views(labelled)) == {"Default"}
    assert not (labelled.repository.folder / "tabs" / "5.json").exists()
    assert {each["model_version"] for each in labelled.studio.predictions.values()} == {"yolo"}


def test_where_a_skipped_task_is_done_it_does_not_come_next(labelled):
    """As the label stream has it."""
    labelled.studio.project["skip_queue"] = "IGNORE_SKIPPED"
    labelled.studio.annotate(7, "cat", cancelled=True)
    labelled.rank()
    assert 7 not in labelled.studio.tabs()["Label next"]


def test_a_record_of_tabs_that_makes_no_sense_is_begun_anew(labelled):
    """Label Studio then has tabs that nobody knows any more, as if they were other people's."""
    labelled.rank()
    (labelled.repository.folder / "tabs" / "5.json").write_text('{"tabs": 3}')
    labelled.rank()
    assert sorted(data["title"] for data in labelled.studio.views.values()) == ["Default", "Label next", "Label next"]


def test_without_tabs_nothing_is_asked_of_the_data_manager(labelled):
    """Nor are labelled tasks given predictions."""
    publish(labelled, doubted=(6, 4))
    labelled.rank(tabs=False)
    assert not [request for request in labelled.studio.requests if "/dm/" in request.path]
    assert not set(LABELLED) & {each["task"] for each in labelled.studio.predictions.values()}
