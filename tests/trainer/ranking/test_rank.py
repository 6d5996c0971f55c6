import io
import json
import logging

import numpy as np
import pytest
from PIL import Image

from contract.errors import ConfigError
from contract.scores.holdout import is_held_out
from contract.scores.ranking import load_rankings
from contract.versions.results import ProjectState, TrainingRecord
from tests.trainer.ranking.rig import TASKS, ours, picture
from tests.trainer.scorer import bald_of, embedding_of, passes_of
from tests.trainer.studio import CONFIG, TOKEN
from trainer import labelstudio
from trainer.ordering.strategies import DEFAULT_STRATEGY
from trainer.ranking import planning
from trainer.ranking import rank as rank_module


@pytest.fixture
def weighed(monkeypatch):
    """The labels by class that there were so far, as each arrangement was given them."""
    seen, arrange = [], planning.arrange
    monkeypatch.setattr(
        planning, "arrange", lambda *of, **given: seen.append(list(given["labels_by_class"])) or arrange(*of, **given)
    )
    return seen


class TestRanking:
    def test_the_pool_is_served_in_the_order_of_the_ranking(self, rig):
        """Every task has one prediction, and the project sorts by it."""
        summary = rig.rank()
        rig.check_whole(rig.version)
        assert (summary.ranking, summary.tasks, summary.imported) == (rig.version, TASKS, TASKS)
        assert summary.audit == is_held_out(5, np.array(list(rig.studio.tasks)), 0.1).sum()
        told = {each["task"]: each["result"][0]["meta"] for each in ours(rig)}
        assert [told[task]["rank"] for task in rig.studio.order()] == list(range(1, TASKS + 1))
        assert {meta["strategy"] for meta in told.values()} == {DEFAULT_STRATEGY}
        assert all(meta["reason"] and meta["bald"] and meta["model_version"] == rig.version for meta in told.values())

    def test_labelled_and_finished_tasks_are_not_ranked_and_skipped_ones_are(self, rig):
        """Somebody else may know what the first one did not."""
        rig.studio.annotate(1, "cat")
        rig.studio.annotate(2, "cat", cancelled=True)
        rig.rank()
        assert set(rig.studio.scores(rig.version)) == set(rig.studio.tasks) - {1}

    def test_the_default_order_knows_the_images_that_have_labels(self, rig, monkeypatch):
        """By their embeddings; one that was skipped, or cannot be had, is none of them."""
        known, arrange = [], planning.arrange
        monkeypatch.setattr(
            planning,
            "arrange",
            lambda *args, labelled, **more: known.append(labelled) or arrange(*args, labelled=labelled, **more),
        )
        for task in (1, 2, 3):
            rig.studio.annotate(task, "cat", cancelled=task == 2)
        rig.server.broken = {3}
        rig.rank()
        expected = embedding_of({"data": {"image": rig.studio.tasks[1]["data"]["image"]}})
        np.testing.assert_array_equal(known[0], [expected])

    @pytest.mark.parametrize("key", ["image.url", "image[0]"])
    def test_images_may_lie_deeper_in_the_tasks_data(self, rig, key):
        """The server is asked with no more of it than that."""
        rig.studio.project["label_config"] = CONFIG.replace("$image", f"${key}")
        for task in rig.studio.tasks.values():
            reference = task["data"]["image"]
            task["data"] = {"image": {"url": reference} if "url" in key else [reference], "more": "not needed"}
        rig.rank()
        assert set(rig.studio.scores(rig.version)) == set(rig.studio.tasks)
        assert all(list(task["data"]) == [key] for body in rig.server.asked for task in body["tasks"])

    def test_labels_that_the_version_has_seen_are_not_read_again(self, rig, weighed):
        """Its record says how many there are of each class; once a label has changed, all are read."""
        rig.studio.annotate(1, "dog")
        state = labelstudio.project_state(labelstudio.connect(rig.studio.url, TOKEN), 5)
        seen = ProjectState(5, state.total_annotations, state.newest_updated_at)
        training = TrainingRecord(project=seen, images_by_class={"cat": 3, "dog": 7})
        rig.publish(training=training)
        rig.rank(strategy="margin")
        assert not any("fields=all" in request.path for request in rig.studio.requests)
        rig.studio.edit(1)
        rig.rank(strategy="margin", force=True)
        assert any("fields=all" in request.path for request in rig.studio.requests)
        assert weighed == [[3, 7], [0, 1]]

    def test_images_that_cannot_be_scored_are_counted_and_named(self, rig, caplog):
        """The others are ranked without them."""
        rig.server.broken = {4, 5}
        with caplog.at_level(logging.INFO):
            assert rig.rank().failed == 2
        assert set(rig.studio.scores(rig.version)) == set(rig.studio.tasks) - {4, 5}
        assert "task 4: no such file" in caplog.text

    def test_if_no_image_can_be_scored_nothing_changes(self, rig):
        """Label Studio would refuse an empty ranking anyway."""
        rig.server.broken = set(rig.studio.tasks)
        with pytest.raises(ConfigError, match="none of 30 images can be scored"):
            rig.rank()
        assert rig.studio.project["model_version"] == ""

    def test_a_project_without_unlabelled_tasks_is_left_as_it_is(self, rig):
        """And that is no error."""
        for task in rig.studio.tasks:
            rig.studio.annotate(task, "cat")
        rig.studio.project["model_version"] = "yolo"
        summary = rig.rank()
        assert (summary.tasks, rig.studio.project["model_version"]) == (0, "yolo")
        assert "no task is left to label" in summary.say()

    def test_what_is_ranked_already_waits_and_is_said_to(self, rig):
        """Ranked again there is nothing to place; labelled ones no longer wait."""
        rig.server.broken = {4, 5}
        assert (rig.rank().tasks, rig.rank().waiting) == (28, 28)
        rig.studio.annotate(1, "cat")
        summary = rig.rank()
        assert (summary.tasks, summary.waiting) == (0, 27)
        assert "nothing new to rank, 27 tasks wait in their order; 2 images cannot be scored" in summary.say()

    def test_sampling_is_left_alone_if_asked(self, rig):
        """Who sorts in the Data Manager may sample as they like."""
        rig.rank(keep_sampling=True)
        assert rig.studio.project["sampling"] == "Sequential"

    def test_a_dry_run_changes_nothing(self, rig, caplog):
        """It says what would come first, and its scores are not computed again."""
        before = json.dumps([rig.studio.project, rig.studio.predictions])
        with caplog.at_level(logging.INFO):
            summary = rig.rank(dry_run=True)
        assert json.dumps([rig.studio.project, rig.studio.predictions]) == before
        assert summary.ranking is None
        assert "would rank 30 tasks" in summary.say()
        assert load_rankings(rig.repository) == []
        rig.rank()
        assert rig.server.tasks_asked == list(rig.studio.tasks)
        assert f"task {rig.studio.order()[0]}, score" in caplog.text


class TestRecord:
    def test_the_record_shows_the_head_and_what_the_model_is_least_and_most_sure_of(self, rig):
        """With thumbnails, and why each is where it is; what is predicted of the random holdout is not shown."""
        rig.rank(holdout_share=0.3)
        [record] = load_rankings(rig.repository)
        assert (record.name, record.version, record.project, record.title) == (rig.version, rig.version, 5, "Pets")
        assert (record.tasks, record.failed, record.strategy) == (TASKS, 0, DEFAULT_STRATEGY)
        assert record.mean_bald == pytest.approx(np.mean([bald_of(task) for task in rig.studio.tasks.values()]))
        order = rig.studio.order()
        sampled = dict(zip(order, is_held_out(5, np.array(order), 0.3).tolist(), strict=True))
        assert [image.task for image in record.first] == order[:12]
        assert {image.label is None for image in record.first if sampled[image.task]} == {True}
        tasks = {task: data for task, data in rig.studio.tasks.items() if not sampled[task]}
        by_bald = sorted(tasks, key=lambda task: -bald_of(tasks[task]))
        assert [image.task for image in record.most_uncertain] == by_bald[:12]
        by_probability = sorted(tasks, key=lambda task: -passes_of(tasks[task]).mean(axis=0).max())
        assert [image.task for image in record.most_confident] == by_probability[:12]
        shown = record.most_uncertain[0]
        assert Image.open(io.BytesIO(shown.thumbnail)).size == (40, 20)
        assert shown.label in {"cat", "dog"}
        assert shown.score == rig.studio.scores(rig.version)[shown.task][0]

    def test_the_random_holdout_is_imported_with_its_score_and_without_a_label(self, rig):
        """Label Studio ticks a label that is predicted, and what is measured on must not be agreed to."""
        rig.rank(holdout_share=0.3)
        sampled = set(np.array(list(rig.studio.tasks))[is_held_out(5, np.array(list(rig.studio.tasks)), 0.3)].tolist())
        assert 3 < len(sampled) < TASKS
        assert {each["task"] for each in ours(rig) if not each["result"]} == sampled
        later = [rig.studio.add_task(**picture(number)) for number in range(100, 120)]
        rig.rank(holdout_share=0.3)
        sampled_later = np.array(later)[is_held_out(5, np.array(later), 0.3)].tolist()
        assert sampled_later
        assert {each["task"] for each in ours(rig) if not each["result"]} == sampled | set(sampled_later)
        assert all(0 <= score <= 1 for [score] in rig.studio.scores(rig.version).values())


class TestAgain:
    def test_a_second_ranking_places_only_what_is_new(self, rig):
        """By its own score, which is on the same scale; what was ranked stays where it was."""
        rig.rank()
        before = rig.studio.scores(rig.version)
        sampled = lambda task: is_held_out(5, np.array([task]), 0.1)[0]  # noqa: E731
        later = [rig.studio.add_task(**picture(number)) for number in range(100, 120)]
        summary = rig.rank()
        assert (summary.tasks, summary.imported) == (20, 20)
        rig.check_whole(rig.version)
        after = rig.studio.scores(rig.version)
        assert before.items() <= after.items()
        for task in later:
            if not sampled(task):
                plain = 1 - bald_of(rig.studio.tasks[task]) / np.log(2)
                assert after[task] == [pytest.approx(plain, abs=1e-6)]
        assert load_rankings(rig.repository)[0].tasks == TASKS + 20
        assert rig.server.tasks_asked == list(rig.studio.tasks)

    def test_tasks_of_the_random_holdout_are_placed_by_chance_also_later(self, rig):
        """Else the labels that measure would be those that the strategy asks for."""
        rig.rank(holdout_share=0.5)
        later = [rig.studio.add_task(**picture(number)) for number in range(100, 140)]
        rig.rank(holdout_share=0.5)
        sampled = [task for task in later if is_held_out(5, np.array([task]), 0.5)[0]]
        scores = [rig.studio.scores(rig.version)[task][0] for task in sampled]
        balds = [bald_of(rig.studio.tasks[task]) for task in sampled]
        assert len(sampled) > 10
        assert abs(np.corrcoef(scores, balds)[0, 1]) < 0.6
        plain = [1 - bald / np.log(2) for bald in balds]
        assert not np.allclose(sorted(scores), sorted(plain), atol=1e-6)

    def test_with_nothing_new_no_server_is_asked(self, rig):
        """And leftovers are put right all the same."""
        rig.rank()
        asked = len(rig.server.requests)
        rig.studio.predict(7, rig.version, rig.studio.scores(rig.version)[7][0])
        rig.studio.project.update(model_version="yolo", sampling="Sequential")
        rig.studio.predict(8, f"{rig.version}.r2")
        summary = rig.rank()
        assert (summary.tasks, summary.removed) == (0, 1)
        rig.check_whole(rig.version)
        assert len(rig.server.requests) == asked

    def test_ranking_twice_writes_nothing_the_second_time(self, rig):
        """Each change of a project is an event for all that listen."""
        rig.rank()
        before = len(rig.studio.requests)
        rig.rank()
        assert {request.method for request in rig.studio.requests[before:]} == {"GET"}

    def test_again_ranks_all_anew_under_the_next_name(self, rig):
        """The one before goes."""
        rig.rank()
        assert rig.rank(force=True, strategy="random").ranking == f"{rig.version}.r2"
        rig.check_whole(f"{rig.version}.r2")
        assert rig.rank().tasks == 0
        assert rig.rank(force=True).ranking == f"{rig.version}.r3"
        rig.check_whole(f"{rig.version}.r3")

    def test_a_new_version_ranks_all_anew(self, rig):
        """And what the one before had said goes when it is whole."""
        first = rig.version
        rig.rank()
        rig.publish()
        old = []
        rig.studio.before = lambda request: old.append(
            bool(rig.studio.scores(first)) or rig.studio.project["model_version"] == rig.version
        )
        assert rig.rank().tasks == TASKS
        rig.check_whole(rig.version)
        assert all(old)

    def test_where_label_studio_fetched_many_the_ranking_takes_the_next_name(self, rig, monkeypatch):
        """To remove a name at once is far cheaper than to remove predictions one by one."""
        monkeypatch.setattr(rank_module, "_FEW_STRAYS", 5)
        for task in range(1, 8):
            rig.studio.predict(task, rig.version, 0.123)
        assert rig.rank().ranking == f"{rig.version}.r2"
        rig.check_whole(f"{rig.version}.r2")

    def test_a_ranking_whose_predictions_were_deleted_is_made_again(self, rig):
        """Somebody may have cleared the project."""
        rig.rank()
        rig.studio.predictions.clear()
        rig.studio.project["model_version"] = ""
        assert rig.rank().tasks == TASKS
        rig.check_whole(rig.version)
