import io
import logging

import numpy as np
import pytest
from PIL import Image

from contract.errors import ConfigError
from contract.scores.ranking import load_rankings
from contract.versions.results import ProjectState, TrainingRecord
from tests.trainer.ranking.project import TASKS, held_out, image_data, meta_by_task, own_predictions
from tests.trainer.scorer import bald_of, embedding_of, passes_of
from tests.trainer.studio import TOKEN
from tests.trainer.studio_project import CONFIG
from trainer import labelstudio
from trainer.ordering.strategies import DEFAULT_STRATEGY
from trainer.ranking import planning
from trainer.ranking import rank as rank_module


@pytest.fixture
def arrange_calls(monkeypatch):
    """The keyword arguments of calls of `arrange`."""
    calls, arrange = [], planning.arrange
    monkeypatch.setattr(
        planning, "arrange", lambda *args, **options: calls.append(options) or arrange(*args, **options)
    )
    return calls


class TestRanking:
    def test_label_studio_sorts_by_the_ranking(self, project):
        summary = project.rank()
        project.check_ranked_by(project.version)
        assert (summary.ranking, summary.tasks, summary.imported) == (project.version, TASKS, TASKS)
        assert summary.audit == len(held_out(project.studio.tasks, 0.1))
        meta = meta_by_task(project)
        assert [meta[task]["rank"] for task in project.studio.order()] == list(range(1, TASKS + 1))
        assert {each["strategy"] for each in meta.values()} == {DEFAULT_STRATEGY}
        assert all(each["reason"] and each["bald"] for each in meta.values())
        assert {each["model_version"] for each in meta.values()} == {project.version}

    def test_default_strategy_gets_embeddings_of_labelled_images(self, project, arrange_calls):
        """Skipped tasks are ranked and do not count as labelled; tasks with a broken image are neither."""
        for task, label in enumerate(["cat", "cat", "cat", "dog", "cat"], start=1):
            project.studio.annotate(task, label, cancelled=task == 2)
        project.server.broken = {3}
        project.rank()
        labelled = arrange_calls[0]["labelled"]
        expected = [
            embedding_of({"data": {"image": project.studio.tasks[task]["data"]["image"]}}) for task in (1, 4, 5)
        ]
        np.testing.assert_array_equal(labelled.embeddings, expected)
        assert labelled.labels.tolist() == [0, 1, 0]
        assert set(project.studio.scores(project.version)) == set(project.studio.tasks) - {1, 3, 4, 5}

    def test_images_in_nested_task_data_are_scored(self, project):
        project.studio.project["label_config"] = CONFIG.replace("$image", "$image.url")
        for task in project.studio.tasks.values():
            task["data"] = {"image": {"url": task["data"]["image"]}, "more": "not needed"}
        project.rank()
        assert set(project.studio.scores(project.version)) == set(project.studio.tasks)
        assert all(list(task["data"]) == ["image.url"] for body in project.server.bodies for task in body["tasks"])

    def test_labels_are_not_read_again_if_unchanged_since_training(self, project, arrange_calls):
        project.studio.annotate(1, "dog")
        state = labelstudio.read_status(labelstudio.connect(project.studio.url, TOKEN, 5))
        unchanged = ProjectState(5, state.total_annotations, state.newest_updated_at)
        training = TrainingRecord(project=unchanged, images_by_class={"cat": 3, "dog": 7})
        project.publish(training=training)
        project.rank(strategy="margin")
        assert not any("fields=all" in request.path for request in project.studio.requests)
        project.studio.edit(1)
        project.rank(strategy="margin", force=True)
        assert any("fields=all" in request.path for request in project.studio.requests)
        assert [list(call["labels_by_class"]) for call in arrange_calls] == [[3, 7], [0, 1]]

    def test_nothing_changes_if_no_image_can_be_scored(self, project):
        project.server.broken = set(project.studio.tasks)
        with pytest.raises(ConfigError, match="none of 30 images can be scored"):
            project.rank()
        assert project.studio.project["model_version"] == ""
        project.server.broken = {4, 5}
        assert (project.rank().tasks, project.rank().waiting) == (28, 28)
        project.studio.annotate(1, "cat")
        summary = project.rank()
        assert (summary.tasks, summary.waiting) == (0, 27)
        assert "nothing new to rank, 27 tasks wait in their order; 2 images cannot be scored" in summary.describe()

    def test_a_project_without_unlabelled_tasks_stays_unchanged(self, project):
        for task in project.studio.tasks:
            project.studio.annotate(task, "cat")
        project.studio.project["model_version"] = "yolo"
        summary = project.rank()
        assert (summary.tasks, project.studio.project["model_version"]) == (0, "yolo")
        assert "no task is left to label" in summary.describe()

    def test_dry_run_changes_nothing(self, project, caplog):
        before = project.dump()
        with caplog.at_level(logging.INFO):
            summary = project.rank(dry_run=True)
        assert project.dump() == before
        assert summary.ranking is None
        assert "would rank 30 tasks" in summary.describe()
        assert load_rankings(project.repository) == []
        project.rank()
        assert project.server.requested_tasks == list(project.studio.tasks)  # once: scores of the dry run are kept
        assert f"task {project.studio.order()[0]}, score" in caplog.text

    def test_keep_sampling_leaves_the_sampling_unchanged(self, project):
        project.rank(keep_sampling=True)
        assert project.studio.project["sampling"] == "Sequential"


class TestRecord:
    def test_record_has_the_first_most_uncertain_and_most_confident_images(self, project):
        """Images that cannot be fetched or decoded are missing."""
        for task, image in ((1, "data:image/png;base64,AAAA"), (2, "http://localhost:9/gone.png")):
            project.studio.tasks[task]["data"] = {"image": image}
        project.rank(holdout_share=0.3)
        [record] = load_rankings(project.repository)
        assert (record.name, record.version, record.project, record.title) == (
            project.version,
            project.version,
            5,
            "Pets",
        )
        assert (record.tasks, record.failed, record.strategy) == (TASKS, 0, DEFAULT_STRATEGY)
        assert record.mean_bald == pytest.approx(np.mean([bald_of(task) for task in project.studio.tasks.values()]))
        order = project.studio.order()
        holdout = held_out(order, 0.3)
        assert [image.task for image in record.first] == [task for task in order[:12] if task > 2]
        assert {image.label is None for image in record.first if image.task in holdout} == {True}
        tasks = {task: data for task, data in project.studio.tasks.items() if task not in holdout}
        by_bald = sorted(tasks, key=lambda task: -bald_of(tasks[task]))
        assert [image.task for image in record.most_uncertain] == [task for task in by_bald[:12] if task > 2]
        by_probability = sorted(tasks, key=lambda task: -passes_of(tasks[task]).mean(axis=0).max())
        assert [image.task for image in record.most_confident] == [task for task in by_probability[:12] if task > 2]
        assert {1, 2} & {*order[:12], *by_bald[:12], *by_probability[:12]}
        image = record.most_uncertain[0]
        assert Image.open(io.BytesIO(image.thumbnail)).size == (40, 20)
        assert image.label in {"cat", "dog"}
        assert image.score == project.studio.scores(project.version)[image.task][0]

    def test_random_holdout_is_placed_at_random_and_imported_without_labels(self, project):
        """Label Studio preselects predicted labels, which would bias measurements on the holdout."""
        project.rank(holdout_share=0.5)
        holdout = held_out(project.studio.tasks, 0.5)
        assert {each["task"] for each in own_predictions(project) if not each["result"]} == holdout
        later = [project.studio.add_task(**image_data(number)) for number in range(100, 140)]
        project.rank(holdout_share=0.5)
        later_holdout = held_out(later, 0.5)
        assert {each["task"] for each in own_predictions(project) if not each["result"]} == holdout | later_holdout
        assert load_rankings(project.repository)[0].audit == len(holdout | later_holdout)
        scores = [project.studio.scores(project.version)[task][0] for task in later_holdout]
        balds = [bald_of(project.studio.tasks[task]) for task in later_holdout]
        assert len(later_holdout) > 10
        assert all(0 <= score <= 1 for [score] in project.studio.scores(project.version).values())
        assert abs(np.corrcoef(scores, balds)[0, 1]) < 0.6
        by_bald = [1 - bald / np.log(2) for bald in balds]
        assert not np.allclose(sorted(scores), sorted(by_bald), atol=1e-6)


class TestRepeated:
    def test_a_second_ranking_places_only_new_tasks(self, project):
        project.rank()
        before = project.studio.scores(project.version)
        later = [project.studio.add_task(**image_data(number)) for number in range(100, 120)]
        summary = project.rank()
        assert (summary.tasks, summary.imported) == (20, 20)
        project.check_ranked_by(project.version)
        after = project.studio.scores(project.version)
        assert before.items() <= after.items()
        for task in set(later) - held_out(later, 0.1):
            by_bald = 1 - bald_of(project.studio.tasks[task]) / np.log(2)
            assert after[task] == [pytest.approx(by_bald, abs=1e-6)]
        assert load_rankings(project.repository)[0].tasks == TASKS + 20
        assert project.server.requested_tasks == list(project.studio.tasks)

    def test_a_ranking_without_new_tasks_writes_nothing(self, project):
        project.rank()
        requests_before = len(project.studio.requests)
        project.rank()
        assert {request.method for request in project.studio.requests[requests_before:]} == {"GET"}

    def test_a_ranking_without_new_tasks_repairs_the_project_without_scoring(self, project):
        project.rank()
        scored = len(project.server.requests)
        project.studio.predict(7, project.version, project.studio.scores(project.version)[7][0])
        project.studio.project.update(model_version="yolo", sampling="Sequential")
        project.studio.predict(8, f"{project.version}.r2")
        summary = project.rank()
        assert (summary.tasks, summary.removed) == (0, 1)
        project.check_ranked_by(project.version)
        assert len(project.server.requests) == scored

    def test_force_ranks_all_tasks_under_the_next_name(self, project):
        project.rank()
        assert project.rank(force=True, strategy="random").ranking == f"{project.version}.r2"
        project.check_ranked_by(f"{project.version}.r2")
        assert project.rank().tasks == 0
        assert project.rank(force=True).ranking == f"{project.version}.r3"
        project.check_ranked_by(f"{project.version}.r3")

    def test_deleted_predictions_are_ranked_again(self, project):
        project.rank()
        project.studio.predictions.clear()
        project.studio.project["model_version"] = ""
        assert project.rank().tasks == TASKS
        project.check_ranked_by(project.version)

    def test_uses_the_next_name_if_label_studio_fetched_many_predictions(self, project, monkeypatch):
        """Deleting all predictions of a name is far cheaper than deleting them one by one."""
        monkeypatch.setattr(rank_module, "_MAX_STRAYS", 5)
        for task in range(1, 8):
            project.studio.predict(task, project.version, 0.123)
        assert project.rank().ranking == f"{project.version}.r2"
        project.check_ranked_by(f"{project.version}.r2")
