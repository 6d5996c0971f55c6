import io
import logging

import numpy as np
import pytest
from PIL import Image

from contract.errors import ConfigError
from contract.scores.ranking import load_rankings
from contract.versions.results import ProjectState, TrainingRecord
from tests.trainer.ranking.rig import TASKS, held_out, meta_of, ours, picture
from tests.trainer.scorer import bald_of, embedding_of, passes_of
from tests.trainer.studio import CONFIG, TOKEN
from trainer import labelstudio
from trainer.ordering.strategies import DEFAULT_STRATEGY
from trainer.ranking import planning
from trainer.ranking import rank as rank_module


@pytest.fixture
def arranged(monkeypatch):
    seen, arrange = [], planning.arrange
    monkeypatch.setattr(planning, "arrange", lambda *of, **given: seen.append(given) or arrange(*of, **given))
    return seen


class TestRanking:
    def test_the_pool_is_served_in_the_order_of_the_ranking(self, rig):
        summary = rig.rank()
        rig.check_whole(rig.version)
        assert (summary.ranking, summary.tasks, summary.imported) == (rig.version, TASKS, TASKS)
        assert summary.audit == len(held_out(rig.studio.tasks, 0.1))
        told = meta_of(rig)
        assert [told[task]["rank"] for task in rig.studio.order()] == list(range(1, TASKS + 1))
        assert {meta["strategy"] for meta in told.values()} == {DEFAULT_STRATEGY}
        assert all(meta["reason"] and meta["bald"] and meta["model_version"] == rig.version for meta in told.values())

    def test_the_default_order_knows_the_images_that_have_labels(self, rig, arranged):
        """By their embeddings. One that was skipped is ranked, and none of them; one that cannot be had is neither."""
        for task, label in enumerate(["cat", "cat", "cat", "dog", "cat"], start=1):
            rig.studio.annotate(task, label, cancelled=task == 2)
        rig.server.broken = {3}
        rig.rank()
        known = arranged[0]["labelled"]
        expected = [embedding_of({"data": {"image": rig.studio.tasks[task]["data"]["image"]}}) for task in (1, 4, 5)]
        np.testing.assert_array_equal(known.embeddings, expected)
        assert known.labels.tolist() == [0, 1, 0]
        assert set(rig.studio.scores(rig.version)) == set(rig.studio.tasks) - {1, 3, 4, 5}

    def test_images_may_lie_deeper_in_the_tasks_data(self, rig):
        rig.studio.project["label_config"] = CONFIG.replace("$image", "$image.url")
        for task in rig.studio.tasks.values():
            task["data"] = {"image": {"url": task["data"]["image"]}, "more": "not needed"}
        rig.rank()
        assert set(rig.studio.scores(rig.version)) == set(rig.studio.tasks)
        assert all(list(task["data"]) == ["image.url"] for body in rig.server.asked for task in body["tasks"])

    def test_labels_that_the_version_has_seen_are_not_read_again(self, rig, arranged):
        rig.studio.annotate(1, "dog")
        state = labelstudio.read_status(labelstudio.connect(rig.studio.url, TOKEN, 5))
        seen = ProjectState(5, state.total_annotations, state.newest_updated_at)
        training = TrainingRecord(project=seen, images_by_class={"cat": 3, "dog": 7})
        rig.publish(training=training)
        rig.rank(strategy="margin")
        assert not any("fields=all" in request.path for request in rig.studio.requests)
        rig.studio.edit(1)
        rig.rank(strategy="margin", force=True)
        assert any("fields=all" in request.path for request in rig.studio.requests)
        assert [list(given["labels_by_class"]) for given in arranged] == [[3, 7], [0, 1]]

    def test_if_no_image_can_be_scored_nothing_changes_and_what_is_ranked_already_waits(self, rig):
        rig.server.broken = set(rig.studio.tasks)
        with pytest.raises(ConfigError, match="none of 30 images can be scored"):
            rig.rank()
        assert rig.studio.project["model_version"] == ""
        rig.server.broken = {4, 5}
        assert (rig.rank().tasks, rig.rank().waiting) == (28, 28)
        rig.studio.annotate(1, "cat")
        summary = rig.rank()
        assert (summary.tasks, summary.waiting) == (0, 27)
        assert "nothing new to rank, 27 tasks wait in their order; 2 images cannot be scored" in summary.describe()

    def test_a_project_without_unlabelled_tasks_is_left_as_it_is(self, rig):
        for task in rig.studio.tasks:
            rig.studio.annotate(task, "cat")
        rig.studio.project["model_version"] = "yolo"
        summary = rig.rank()
        assert (summary.tasks, rig.studio.project["model_version"]) == (0, "yolo")
        assert "no task is left to label" in summary.describe()

    def test_a_dry_run_changes_nothing_and_sampling_is_left_alone_if_asked(self, rig, caplog):
        before = rig.dump()
        with caplog.at_level(logging.INFO):
            summary = rig.rank(dry_run=True)
        assert rig.dump() == before
        assert summary.ranking is None
        assert "would rank 30 tasks" in summary.describe()
        assert load_rankings(rig.repository) == []
        rig.rank(keep_sampling=True)
        assert rig.studio.project["sampling"] == "Sequential"
        assert rig.server.tasks_asked == list(rig.studio.tasks)
        assert f"task {rig.studio.order()[0]}, score" in caplog.text


class TestRecord:
    def test_the_record_shows_the_head_and_what_the_model_is_least_and_most_sure_of(self, rig):
        """Images that cannot be had or read are left out."""
        for task, image in ((1, "data:image/png;base64,AAAA"), (2, "http://localhost:9/gone.png")):
            rig.studio.tasks[task]["data"] = {"image": image}
        rig.rank(holdout_share=0.3)
        [record] = load_rankings(rig.repository)
        assert (record.name, record.version, record.project, record.title) == (rig.version, rig.version, 5, "Pets")
        assert (record.tasks, record.failed, record.strategy) == (TASKS, 0, DEFAULT_STRATEGY)
        assert record.mean_bald == pytest.approx(np.mean([bald_of(task) for task in rig.studio.tasks.values()]))
        order = rig.studio.order()
        sampled = held_out(order, 0.3)
        assert [image.task for image in record.first] == [task for task in order[:12] if task > 2]
        assert {image.label is None for image in record.first if image.task in sampled} == {True}
        tasks = {task: data for task, data in rig.studio.tasks.items() if task not in sampled}
        by_bald = sorted(tasks, key=lambda task: -bald_of(tasks[task]))
        assert [image.task for image in record.most_uncertain] == [task for task in by_bald[:12] if task > 2]
        by_probability = sorted(tasks, key=lambda task: -passes_of(tasks[task]).mean(axis=0).max())
        assert [image.task for image in record.most_confident] == [task for task in by_probability[:12] if task > 2]
        assert {1, 2} & {*order[:12], *by_bald[:12], *by_probability[:12]}
        shown = record.most_uncertain[0]
        assert Image.open(io.BytesIO(shown.thumbnail)).size == (40, 20)
        assert shown.label in {"cat", "dog"}
        assert shown.score == rig.studio.scores(rig.version)[shown.task][0]

    def test_the_random_holdout_is_placed_by_chance_and_imported_without_a_label(self, rig):
        """Label Studio ticks what is predicted; what is measured on must neither be agreed to nor asked for."""
        rig.rank(holdout_share=0.5)
        sampled = held_out(rig.studio.tasks, 0.5)
        assert {each["task"] for each in ours(rig) if not each["result"]} == sampled
        later = [rig.studio.add_task(**picture(number)) for number in range(100, 140)]
        rig.rank(holdout_share=0.5)
        sampled_later = held_out(later, 0.5)
        assert {each["task"] for each in ours(rig) if not each["result"]} == sampled | sampled_later
        assert load_rankings(rig.repository)[0].audit == len(sampled | sampled_later)
        scores = [rig.studio.scores(rig.version)[task][0] for task in sampled_later]
        balds = [bald_of(rig.studio.tasks[task]) for task in sampled_later]
        assert len(sampled_later) > 10
        assert all(0 <= score <= 1 for [score] in rig.studio.scores(rig.version).values())
        assert abs(np.corrcoef(scores, balds)[0, 1]) < 0.6
        plain = [1 - bald / np.log(2) for bald in balds]
        assert not np.allclose(sorted(scores), sorted(plain), atol=1e-6)


class TestAgain:
    def test_a_second_ranking_places_only_what_is_new(self, rig):
        rig.rank()
        before = rig.studio.scores(rig.version)
        later = [rig.studio.add_task(**picture(number)) for number in range(100, 120)]
        summary = rig.rank()
        assert (summary.tasks, summary.imported) == (20, 20)
        rig.check_whole(rig.version)
        after = rig.studio.scores(rig.version)
        assert before.items() <= after.items()
        for task in set(later) - held_out(later, 0.1):
            plain = 1 - bald_of(rig.studio.tasks[task]) / np.log(2)
            assert after[task] == [pytest.approx(plain, abs=1e-6)]
        assert load_rankings(rig.repository)[0].tasks == TASKS + 20
        assert rig.server.tasks_asked == list(rig.studio.tasks)

    def test_with_nothing_new_nothing_is_written_and_no_server_is_asked(self, rig):
        """Each change of a project is an event for all that listen. Leftovers are put right all the same."""
        rig.rank()
        asked, before = len(rig.server.requests), len(rig.studio.requests)
        rig.rank()
        assert {request.method for request in rig.studio.requests[before:]} == {"GET"}
        rig.studio.predict(7, rig.version, rig.studio.scores(rig.version)[7][0])
        rig.studio.project.update(model_version="yolo", sampling="Sequential")
        rig.studio.predict(8, f"{rig.version}.r2")
        summary = rig.rank()
        assert (summary.tasks, summary.removed) == (0, 1)
        rig.check_whole(rig.version)
        assert len(rig.server.requests) == asked

    def test_again_ranks_all_anew_under_the_next_name_and_what_was_deleted_is_made_again(self, rig):
        rig.rank()
        assert rig.rank(force=True, strategy="random").ranking == f"{rig.version}.r2"
        rig.check_whole(f"{rig.version}.r2")
        assert rig.rank().tasks == 0
        assert rig.rank(force=True).ranking == f"{rig.version}.r3"
        rig.check_whole(f"{rig.version}.r3")
        rig.studio.predictions.clear()
        rig.studio.project["model_version"] = ""
        assert rig.rank().tasks == TASKS
        rig.check_whole(rig.version)

    def test_where_label_studio_fetched_many_the_ranking_takes_the_next_name(self, rig, monkeypatch):
        """To remove a name at once is far cheaper than to remove predictions one by one."""
        monkeypatch.setattr(rank_module, "_MOST_STRAYS", 5)
        for task in range(1, 8):
            rig.studio.predict(task, rig.version, 0.123)
        assert rig.rank().ranking == f"{rig.version}.r2"
        rig.check_whole(f"{rig.version}.r2")
