import json

import pytest

from contract.errors import ConfigError
from tests.trainer.studio import TOKEN, Aborted, studio
from trainer import labelstudio
from trainer.labelstudio.tasks import unlabelled_tasks
from trainer.ranking import reconcile as reconcile_module
from trainer.ranking.reconcile import DesiredPrediction, reconcile

NAME = "20261123T050102123Z-0a1b2c"
REGION = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}


@pytest.fixture(autouse=True)
def _in_no_time(monkeypatch):
    """Waiting is not what is tested, but where it is."""
    monkeypatch.setattr(reconcile_module, "_SETTLE_S", 0.2)
    monkeypatch.setattr(reconcile_module, "_POLL_S", 0.01)


@pytest.fixture
def pets():
    with studio(10) as state:
        yield state


def desired_of(tasks):
    return {task: DesiredPrediction(task / 100, [REGION]) for task in tasks}


def bring(state, tmp_path, desired=None):
    client = labelstudio.connect(state.url, TOKEN, 5)
    return reconcile(
        client,
        name=NAME,
        desired=desired_of(state.tasks) if desired is None else desired,
        journal=tmp_path / "import.json",
        find_current=lambda: {task.id for task in unlabelled_tasks(client)},
    )


def is_whole(state):
    return state.scores(NAME) == {task: [task / 100] for task in state.tasks}


def imports_of(state):
    return [request for request in state.requests if request.method == "POST"]


def test_what_is_there_already_is_put_right(pets, tmp_path):
    desired = {task: DesiredPrediction(task / 100, () if task == 1 else [REGION]) for task in pets.tasks}
    good = [pets.predict(task, NAME, task / 100) for task in (3, 4, 5)]
    others = [pets.predict(3, "yolo"), pets.predict(3, f"{NAME}.r2"), pets.predict(2, "yolo")]
    ticked, twice, fetched = (pets.predict(task, NAME, score) for task, score in ((1, 0.01), (3, 0.03), (6, 0.9)))
    pets.predictions[ticked]["result"] = [REGION]
    assert bring(pets, tmp_path, desired) == 7
    assert is_whole(pets)
    assert {*good, *others} <= set(pets.predictions)
    assert not {ticked, twice, fetched} & set(pets.predictions)
    assert [each["task"] for each in pets.predictions.values() if each["result"] == []][-1] == 1


@pytest.mark.parametrize(("most", "sizes"), [(10_000, [10]), (4, [4, 4, 2])])
def test_all_go_in_as_few_calls_as_can_be(pets, tmp_path, monkeypatch, most, sizes):
    """Each call costs Label Studio a recount of the whole project, and none is to take minutes."""
    monkeypatch.setattr(reconcile_module, "IMPORT_TASKS", most)
    assert bring(pets, tmp_path) == 10
    assert is_whole(pets)
    assert [len(json.loads(request.body)) for request in imports_of(pets)] == sizes
    assert list(tmp_path.iterdir()) == []


def test_tasks_that_were_deleted_or_labelled_meanwhile_cost_the_others_nothing(pets, tmp_path):
    """Label Studio refuses a whole import for one unknown task."""
    desired = desired_of(pets.tasks)
    pets.delete_task(4)
    pets.annotate(7, "cat")
    bring(pets, tmp_path, desired)
    assert set(pets.scores(NAME)) == set(desired) - {4, 7}


def test_a_label_that_the_config_has_lost_costs_the_label_and_not_the_score(pets, tmp_path, caplog):
    """Label Studio drops such predictions without a word."""
    pets.drops = lambda prediction: prediction["task"] == 3 and prediction["result"]
    bring(pets, tmp_path)
    assert is_whole(pets)
    assert [each["task"] for each in pets.predictions.values() if not each["result"]] == [3]
    assert "dropped 1 predictions" in caplog.text


def test_nested_choices_are_sent_so_that_the_import_finds_them_valid(pets, tmp_path):
    """It takes what it checks from under the control's name; what the editor selects stands beside that."""
    nested = {**REGION, "value": {"choices": [["animal", "cat"], ["plain"]]}}
    bring(pets, tmp_path, {1: DesiredPrediction(0.01, [nested]), 2: DesiredPrediction(0.02, [REGION])})
    values = {each["task"]: each["result"][0]["value"] for each in pets.predictions.values()}
    assert values == {
        1: {"choices": [["animal", "cat"], ["plain"]], "label": {"choices": ["cat", "plain"]}},
        2: {"choices": ["cat"]},
    }


@pytest.mark.parametrize(
    ("happen", "message"),
    [
        (lambda pets: pets.refuse("POST", 400), "refuses the import although all its tasks are there"),
        (
            lambda pets: setattr(pets, "drops", lambda each: each["task"] == 3),
            r"the predictions of 1 tasks .* of 3 among",
        ),
        pytest.param(
            lambda pets: pets.refuse("POST", 500), "after 6 attempts that changed nothing it", marks=pytest.mark.slow
        ),
    ],
    ids=["refused", "dropped without a label too", "never done"],
)
def test_a_label_studio_that_does_not_take_them_is_given_up(pets, tmp_path, happen, message):
    happen(pets)
    with pytest.raises(ConfigError, match=message):
        bring(pets, tmp_path)


@pytest.mark.slow
def test_an_import_that_is_lost_with_its_answer_is_sent_again(pets, tmp_path):
    """A gateway may give up before Label Studio has begun."""

    def lose(request):
        if request.method == "POST":
            pets.before = lambda request: None
            raise Aborted(504)

    pets.before = lose
    bring(pets, tmp_path)
    assert is_whole(pets)
    assert len(imports_of(pets)) == 2


@pytest.mark.parametrize("arrives", [True, False], ids=["arrives", "never"])
def test_an_import_that_is_under_way_since_a_run_was_killed_is_waited_for(pets, tmp_path, arrives, monkeypatch):
    monkeypatch.setattr(reconcile_module, "_SETTLE_S", 30.0 if arrives else 0.1)
    (tmp_path / "import.json").write_text(json.dumps({"before": 0, "sent": 10, "at": 4e9}))
    looks = []

    def arrive(request):
        if request.path.endswith("extended=true"):
            looks.append(request)
            if arrives and len(looks) == 3:
                pets.take([{"task": n, "model_version": NAME, "score": n / 100, "result": []} for n in pets.tasks])

    pets.before = arrive
    bring(pets, tmp_path)
    assert is_whole(pets)
    assert len(imports_of(pets)) == (0 if arrives else 1)


def test_an_import_that_outlives_its_request_is_waited_for(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(reconcile_module, "_SETTLE_S", 30.0)
    looks = []

    def happen(request):
        if request.method == "POST":
            (tmp_path / "import.json").write_text(json.dumps({"before": 0, "sent": 10, "at": 0.0}))
            raise Aborted(504)
        looks.append(request)
        if len([look for look in looks if look.path.endswith("extended=true")]) == 8:
            pets.before = lambda request: None
            pets.take(json.loads(imports_of(pets)[0].body))

    pets.before = happen
    bring(pets, tmp_path)
    assert is_whole(pets)
    assert len(imports_of(pets)) == 1


def test_imports_that_are_cut_short_and_arrive_are_no_failures(pets, tmp_path, monkeypatch):
    """Behind a proxy that waits for less than an import takes, each still brings the end nearer."""
    monkeypatch.setattr(reconcile_module, "IMPORT_TASKS", 1)
    monkeypatch.setattr(reconcile_module, "_MAX_ROUNDS", 2)
    pets.refuse("POST", 502, after=pets.route)
    bring(pets, tmp_path)
    assert is_whole(pets)
