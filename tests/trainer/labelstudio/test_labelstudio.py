import json
import re

import pytest

from contract.label_studio import BadRequest, Unreachable
from tests.trainer.studio_project import CONFIG
from trainer import labelstudio
from trainer.labelstudio import tasks
from trainer.labelstudio.tasks import annotated_tasks, count_labels_since, count_unlabelled, unlabelled_tasks


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch):
    monkeypatch.setattr(tasks, "_PAGE_TASKS", 5)
    monkeypatch.setattr(tasks, "_ANNOTATED_PAGE_TASKS", 2)


class TestTasks:
    def test_annotated_tasks_are_labelled_ones_then_skipped_ones(self, pets):
        for task in (9, 2, 5, 7):
            pets.annotate(task, "cat")
        pets.annotate(3, "cat", cancelled=True)
        annotated = list(annotated_tasks(pets.client))
        assert [task["id"] for task in annotated] == [2, 5, 7, 9, 3]
        assert annotated[0] == {name: pets.tasks[2][name] for name in ("id", "data", "annotations")}
        assert "fields=all" in pets.requests[-1].path

    def test_unlabelled_tasks_have_their_data(self, pets):
        pets.annotate(4, "cat")
        pets.annotate(6, "cat", cancelled=True)
        unlabelled = list(unlabelled_tasks(pets.client))
        assert [task.id for task in unlabelled] == [number for number in pets.tasks if number != 4]
        assert unlabelled[0].data == pets.tasks[1]["data"]
        assert count_unlabelled(pets.client) == len(unlabelled)
        assert "resolve_uri=false" in pets.requests[-2].path

    def test_all_tasks_are_listed_while_others_are_labelled(self, pets):
        """With pages of two tasks."""
        list_tasks = pets.list_tasks
        pets.list_tasks = lambda parameters: list_tasks({**parameters, "page_size": "2"})
        numbers = []
        for task in unlabelled_tasks(pets.client):
            numbers.append(task.id)
            if task.id < 11:
                pets.annotate(task.id, "cat")
        assert numbers == list(pets.tasks)


class TestStatus:
    def test_every_change_of_labels_changes_the_status(self, pets):
        statuses = [labelstudio.read_status(pets.client)]
        assert (statuses[0].tasks, statuses[0].total_annotations, statuses[0].newest_updated_at) == (12, 0, "")
        for change in (
            lambda: pets.annotate(1, "cat"),
            lambda: pets.annotate(2, "cat", cancelled=True),
            lambda: pets.tasks[1].update(updated_at="2026-02-01T00:00:00.000000Z"),
            pets.add_task,
            lambda: pets.project.update(label_config=CONFIG + " "),
            lambda: pets.delete_task(1),
        ):
            change()
            statuses.append(labelstudio.read_status(pets.client))
        assert len(set(statuses)) == len(statuses)
        assert labelstudio.read_status(pets.client) == statuses[-1]

    def test_created_and_edited_labels_are_counted_after_a_time(self, pets):
        for task in (1, 2, 3, 4):
            pets.annotate(task, "cat")
        moment = labelstudio.read_status(pets.client).newest_updated_at
        pets.annotate(1, "dog")
        pets.annotate(5, "dog")
        pets.annotate(6, "dog", cancelled=True)
        pets.edit(2)
        pets.tasks[3]["updated_at"] = pets.timestamp()
        until = labelstudio.read_status(pets.client).newest_updated_at
        pets.edit(4)
        assert count_labels_since(pets.client, moment, until=until) == (2, 1)
        assert count_labels_since(pets.client, until, until=pets.timestamp()) == (0, 1)


class TestPredictions:
    def test_predictions_of_one_version_are_listed(self, pets):
        pets.predict(1, "v1", 0.25)
        pets.predict(2, "v2")
        pets.predict(1, "v1", None)
        pets.predictions[14]["result"] = [{"meta": {"task": 1, "model_version": "v1", "id": 3, "score": 1}}]
        predictions = labelstudio.list_predictions(pets.client, "v1")
        assert [(each.task, each.score) for each in predictions] == [(1, 0.25), (1, None)]
        assert labelstudio.count_predictions(pets.client) == {"v1": 2, "v2": 1}

    def test_failed_imports_are_not_repeated(self, pets):
        """A refused import stored nothing; after other errors the outcome is unknown."""
        with pytest.raises(BadRequest):
            labelstudio.import_predictions(pets.client, [{"task": 99, "score": 0.5, "result": []}])
        pets.refuse("POST", 502)
        before = len(pets.requests)
        with pytest.raises(Unreachable):
            labelstudio.import_predictions(pets.client, [])
        assert len(pets.requests) == before + 1

    def test_deleting_a_missing_prediction_is_no_error(self, pets):
        labelstudio.delete_prediction(pets.client, 99)

    def test_version_and_sampling_are_set_by_one_request(self, pets):
        """Raises BadRequest if the version has no prediction."""
        pets.predict(1, "v1")
        labelstudio.switch_model_version(pets.client, "v1")
        [request] = [request for request in pets.requests if request.method == "PATCH"]
        assert json.loads(request.body) == {"model_version": "v1", "sampling": "Uncertainty sampling"}
        with pytest.raises(BadRequest, match=re.escape("'v2' for project 5: no prediction in the project has it")):
            labelstudio.switch_model_version(pets.client, "v2")
