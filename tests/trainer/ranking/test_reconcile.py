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
def _short_waits(monkeypatch):
    monkeypatch.setattr(reconcile_module, "_SETTLE_S", 0.2)
    monkeypatch.setattr(reconcile_module, "_POLL_S", 0.01)


@pytest.fixture
def pets():
    with studio(10) as pets:
        yield pets


def make_desired(tasks):
    return {task: DesiredPrediction(task / 100, [REGION]) for task in tasks}


def run_reconcile(pets, tmp_path, desired=None):
    client = labelstudio.connect(pets.url, TOKEN, 5)
    return reconcile(
        client,
        name=NAME,
        desired=make_desired(pets.tasks) if desired is None else desired,
        journal=tmp_path / "import.json",
        find_open_tasks=lambda: {task.id for task in unlabelled_tasks(client)},
    )


def is_complete(pets):
    return pets.scores(NAME) == {task: [task / 100] for task in pets.tasks}


def imports_of(pets):
    return [request for request in pets.requests if request.method == "POST"]


def test_existing_predictions_are_corrected(pets, tmp_path):
    desired = {task: DesiredPrediction(task / 100, () if task == 1 else [REGION]) for task in pets.tasks}
    correct = [pets.predict(task, NAME, task / 100) for task in (3, 4, 5)]
    others = [pets.predict(3, "yolo"), pets.predict(3, f"{NAME}.r2"), pets.predict(2, "yolo")]
    holdout_with_label = pets.predict(1, NAME, 0.01)
    duplicate = pets.predict(3, NAME, 0.03)
    wrong_score = pets.predict(6, NAME, 0.9)
    pets.predictions[holdout_with_label]["result"] = [REGION]
    assert run_reconcile(pets, tmp_path, desired) == 7
    assert is_complete(pets)
    assert {*correct, *others} <= set(pets.predictions)
    assert not {holdout_with_label, duplicate, wrong_score} & set(pets.predictions)
    assert [each["task"] for each in pets.predictions.values() if each["result"] == []][-1] == 1


@pytest.mark.parametrize(("import_tasks", "sizes"), [(10_000, [10]), (4, [4, 4, 2])])
def test_imports_are_as_few_as_possible(pets, tmp_path, monkeypatch, import_tasks, sizes):
    monkeypatch.setattr(reconcile_module, "IMPORT_TASKS", import_tasks)
    assert run_reconcile(pets, tmp_path) == 10
    assert is_complete(pets)
    assert [len(json.loads(request.body)) for request in imports_of(pets)] == sizes
    assert list(tmp_path.iterdir()) == []


def test_tasks_deleted_or_labelled_meanwhile_are_skipped(pets, tmp_path):
    """Label Studio refuses a whole import for one unknown task."""
    desired = make_desired(pets.tasks)
    pets.delete_task(4)
    pets.annotate(7, "cat")
    run_reconcile(pets, tmp_path, desired)
    assert set(pets.scores(NAME)) == set(desired) - {4, 7}


def test_predictions_with_unknown_labels_are_imported_without_them(pets, tmp_path, caplog):
    """Label Studio silently drops them at first."""
    pets.drops = lambda prediction: prediction["task"] == 3 and prediction["result"]
    run_reconcile(pets, tmp_path)
    assert is_complete(pets)
    assert [each["task"] for each in pets.predictions.values() if not each["result"]] == [3]
    assert "dropped 1 predictions" in caplog.text


def test_nested_choices_pass_the_validation_of_imports(pets, tmp_path):
    """It reads the value under the control's name; the editor reads `choices`."""
    nested = {**REGION, "value": {"choices": [["animal", "cat"], ["plain"]]}}
    run_reconcile(pets, tmp_path, {1: DesiredPrediction(0.01, [nested]), 2: DesiredPrediction(0.02, [REGION])})
    values = {each["task"]: each["result"][0]["value"] for each in pets.predictions.values()}
    assert values == {
        1: {"choices": [["animal", "cat"], ["plain"]], "label": {"choices": ["cat", "plain"]}},
        2: {"choices": ["cat"]},
    }


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (lambda pets: pets.refuse("POST", 400), "refuses the import although all of its tasks exist"),
        (
            lambda pets: setattr(pets, "drops", lambda each: each["task"] == 3),
            r"the predictions of 1 tasks .* of 3;",
        ),
        pytest.param(
            lambda pets: pets.refuse("POST", 500),
            "6 imports in a row added none",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["refused", "dropped even without label", "never stored"],
)
def test_raises_if_label_studio_stores_no_predictions(pets, tmp_path, fail, message):
    fail(pets)
    with pytest.raises(ConfigError, match=message):
        run_reconcile(pets, tmp_path)


@pytest.mark.slow
def test_an_import_that_never_arrived_is_repeated(pets, tmp_path):
    """A gateway may time out before it forwards the request."""

    def time_out(request):
        if request.method == "POST":
            pets.before = lambda request: None
            raise Aborted(504)

    pets.before = time_out
    run_reconcile(pets, tmp_path)
    assert is_complete(pets)
    assert len(imports_of(pets)) == 2


@pytest.mark.parametrize("completes", [True, False])
def test_the_pending_import_of_a_killed_run_is_awaited(pets, tmp_path, completes, monkeypatch):
    monkeypatch.setattr(reconcile_module, "_SETTLE_S", 30.0 if completes else 0.1)
    (tmp_path / "import.json").write_text(json.dumps({"before": 0, "sent": 10, "at": 4e9}))
    counts = []

    def complete(request):
        if request.path.endswith("extended=true"):
            counts.append(request)
            if completes and len(counts) == 3:
                pets.import_predictions(
                    [{"task": n, "model_version": NAME, "score": n / 100, "result": []} for n in pets.tasks]
                )

    pets.before = complete
    run_reconcile(pets, tmp_path)
    assert is_complete(pets)
    assert len(imports_of(pets)) == (0 if completes else 1)


def test_an_import_that_completes_after_a_timeout_is_awaited(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(reconcile_module, "_SETTLE_S", 30.0)
    requests = []

    def time_out_then_complete(request):
        if request.method == "POST":
            (tmp_path / "import.json").write_text(json.dumps({"before": 0, "sent": 10, "at": 0.0}))
            raise Aborted(504)
        requests.append(request)
        if sum(each.path.endswith("extended=true") for each in requests) == 8:
            pets.before = lambda request: None
            pets.import_predictions(json.loads(imports_of(pets)[0].body))

    pets.before = time_out_then_complete
    run_reconcile(pets, tmp_path)
    assert is_complete(pets)
    assert len(imports_of(pets)) == 1


def test_imports_that_time_out_and_complete_count_as_progress(pets, tmp_path, monkeypatch):
    """The timeout of a proxy may be shorter than every import."""
    monkeypatch.setattr(reconcile_module, "IMPORT_TASKS", 1)
    monkeypatch.setattr(reconcile_module, "_MAX_ROUNDS", 2)
    pets.refuse("POST", 502, after=pets.route)
    run_reconcile(pets, tmp_path)
    assert is_complete(pets)
