import base64
import dataclasses
import io
import itertools
import json
import logging
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from contract.errors import ConfigError, LabelMismatch
from contract.label_studio import LabelStudioClient
from contract.scores.holdout import is_held_out
from contract.scores.ranking import load_rankings
from contract.versions.repository import Repository
from tests.trainer.scorer import bald_of, passes_of, scorer
from tests.trainer.studio import CONFIG, TOKEN, Gone, studio
from tests.versions import publish
from trainer import labelstudio
from trainer.ordering import coldstart
from trainer.ordering.strategies import DEFAULT_STRATEGY
from trainer.ranking import planning, pool, reconcile, retries
from trainer.ranking import rank as rank_module
from trainer.ranking.options import RankOptions
from trainer.ranking.predictions import KEPT, LATER, SCORED_LATER
from trainer.ranking.rank import rank
from trainer.ranking.retries import Insistence
from trainer.ranking.server import Patience, Server
from trainer.settings import Environment

TASKS = 30


def picture(number):
    """A task's data with an image of one colour in it."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), (number * 7 % 256, number * 31 % 256, 99)).save(buffer, "PNG")
    return {"image": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"}


class Place:
    """A Label Studio with pictures, a repository with a version, and a server of it."""

    def __init__(self, tmp_path, state, server, repository):
        self.studio = state
        self.server = server
        self.repository = repository
        self.version = server.version
        self.environment = Environment(
            models=repository.root,
            cache=tmp_path / "cache",
            label_studio_url=state.url,
            label_studio_token=TOKEN,
            server=server.url,
        )

    def rank(self, **options):
        return rank(RankOptions(5, **{"first": 5, **options}), self.environment)

    def publish(self):
        """Have the server serve another version."""
        self.version = self.server.version = publish(self.repository, b"newer").name

    @property
    def unlabelled(self):
        return [task for task in self.studio.tasks if not self.studio.counts(task)[0]]

    def check_whole(self, name):
        """The project sorts by this ranking, in which each unlabelled task has one prediction of ours and no other."""
        assert self.studio.project["model_version"] == name
        assert self.studio.project["sampling"] == "Uncertainty sampling"
        scores = self.studio.scores(name)
        assert set(self.unlabelled) <= set(scores)
        assert {len(each) for each in scores.values()} <= {1}
        ours = {each["model_version"] for each in self.studio.predictions.values()} - {"yolo"}
        assert ours == {name}
        assert not list((self.environment.cache / "rank").rglob("*.*"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Thirty unlabelled pictures, and one prediction of somebody else's."""
    monkeypatch.setattr(reconcile, "_SETTLE_S", 0.1)
    monkeypatch.setattr(reconcile, "_POLL_S", 0.01)
    repository = Repository(tmp_path / "models")
    version = publish(repository, b"one").name
    with studio() as state, scorer(version) as server:
        for number in range(TASKS):
            state.add_task(**picture(number))
        state.predict(3, "yolo")
        yield Place(tmp_path, state, server, repository)


class TestRanking:
    def test_the_pool_is_served_in_the_order_of_the_ranking(self, place):
        """Every task has one prediction, and the project sorts by it."""
        summary = place.rank()
        place.check_whole(place.version)
        assert (summary.ranking, summary.tasks, summary.imported) == (place.version, TASKS, TASKS)
        assert summary.audit == is_held_out(5, np.array(list(place.studio.tasks)), 0.1).sum()
        told = {each["task"]: each["result"][0]["meta"] for each in ours(place)}
        assert [told[task]["rank"] for task in place.studio.order()] == list(range(1, TASKS + 1))
        assert {meta["strategy"] for meta in told.values()} == {DEFAULT_STRATEGY}
        assert all(meta["reason"] and meta["bald"] and meta["model_version"] == place.version for meta in told.values())

    def test_stored_scores_are_those_of_plain_agreement_in_another_order(self, place):
        """So that tasks which come later can be placed among them."""
        place.rank()
        stored = sorted(score for [score] in place.studio.scores(place.version).values())
        plain = sorted(1 - bald_of(task) / np.log(2) for task in place.studio.tasks.values())
        np.testing.assert_allclose(stored, plain, atol=1e-6)

    def test_labelled_and_finished_tasks_are_not_ranked_and_skipped_ones_are(self, place):
        """Somebody else may know what the first one did not."""
        place.studio.annotate(1, "cat")
        place.studio.annotate(2, "cat", cancelled=True)
        place.rank()
        assert set(place.studio.scores(place.version)) == set(place.studio.tasks) - {1}

    @pytest.mark.parametrize("key", ["image.url", "image[0]"])
    def test_images_may_lie_deeper_in_the_tasks_data(self, place, key):
        """The server is asked with no more of it than that."""
        place.studio.project["label_config"] = CONFIG.replace("$image", f"${key}")
        for task in place.studio.tasks.values():
            reference = task["data"]["image"]
            task["data"] = {"image": {"url": reference} if "url" in key else [reference], "more": "not needed"}
        place.rank()
        assert set(place.studio.scores(place.version)) == set(place.studio.tasks)
        assert all(list(task["data"]) == [key] for body in place.server.asked for task in body["tasks"])

    def test_labels_so_far_weigh_in(self, place, monkeypatch):
        """By the version's order of classes, whatever else was chosen."""
        seen = []
        arrange = planning.arrange
        monkeypatch.setattr(
            planning,
            "arrange",
            lambda *args, **given: seen.append(given["labels_by_class"]) or arrange(*args, **given),
        )
        for task, label in ((1, "dog"), (2, "dog"), (3, "cat"), (4, "bird")):
            place.studio.annotate(task, label)
        place.studio.annotate(5, "cat", cancelled=True)
        place.rank()
        assert seen == [[1, 2]]

    @pytest.mark.parametrize("strategy", ["bald", "batch-bald", "random", "margin"])
    def test_any_strategy_serves(self, place, strategy):
        """Those that need the passes ask for them."""
        assert place.rank(strategy=strategy).strategy == strategy
        place.check_whole(place.version)

    def test_the_server_is_told_no_more_than_it_needs(self, place):
        """A task's data may hold what concerns nobody."""
        place.studio.tasks[1]["data"]["patient"] = "Ann"
        place.rank()
        assert {tuple(task["data"]) for body in place.server.asked for task in body["tasks"]} == {("image",)}

    def test_images_that_cannot_be_scored_are_counted_and_named(self, place, caplog):
        """The others are ranked without them."""
        place.server.broken = {4, 5}
        with caplog.at_level(logging.INFO):
            assert place.rank().failed == 2
        assert set(place.studio.scores(place.version)) == set(place.studio.tasks) - {4, 5}
        assert "task 4: no such file" in caplog.text

    def test_if_no_image_can_be_scored_nothing_changes(self, place):
        """Label Studio would refuse an empty ranking anyway."""
        place.server.broken = set(place.studio.tasks)
        with pytest.raises(ConfigError, match="none of 30 images can be scored"):
            place.rank()
        assert place.studio.project["model_version"] == ""

    def test_a_project_without_unlabelled_tasks_is_left_as_it_is(self, place):
        """And that is no error."""
        for task in place.studio.tasks:
            place.studio.annotate(task, "cat")
        place.studio.project["model_version"] = "yolo"
        summary = place.rank()
        assert (summary.tasks, place.studio.project["model_version"]) == (0, "yolo")
        assert "no task is left to label" in summary.say()

    def test_what_is_ranked_already_waits_and_is_said_to(self, place):
        """Ranked again there is nothing to place; labelled ones no longer wait."""
        place.server.broken = {4, 5}
        assert (place.rank().tasks, place.rank().waiting) == (28, 28)
        place.studio.annotate(1, "cat")
        summary = place.rank()
        assert (summary.tasks, summary.waiting) == (0, 27)
        assert "nothing new to rank, 27 tasks wait in their order; 2 images cannot be scored" in summary.say()

    def test_an_unknown_strategy_is_refused_before_anything_is_asked(self, place):
        """With those that there are."""
        with pytest.raises(ConfigError, match="balanced-bald"):
            place.rank(strategy="bold")
        assert not place.studio.requests

    def test_a_control_that_is_not_there_is_refused(self, place):
        """With those that there are."""
        with pytest.raises(ConfigError, match=r"named breed, the labelling config has label"):
            place.rank(control="breed")

    def test_sampling_is_left_alone_if_asked(self, place):
        """Who sorts in the Data Manager may sample as they like."""
        place.rank(keep_sampling=True)
        assert place.studio.project["sampling"] == "Sequential"

    def test_a_dry_run_changes_nothing(self, place, caplog):
        """It says what would come first, and its scores are not computed again."""
        before = json.dumps([place.studio.project, place.studio.predictions])
        with caplog.at_level(logging.INFO):
            summary = place.rank(dry_run=True)
        assert json.dumps([place.studio.project, place.studio.predictions]) == before
        assert summary.ranking is None
        assert "would rank 30 tasks" in summary.say()
        assert load_rankings(place.repository) == []
        place.rank()
        assert place.server.tasks_asked == list(place.studio.tasks)
        assert f"task {place.studio.order()[0]}, score" in caplog.text


def ours(place):
    return [each for each in place.studio.predictions.values() if each["model_version"].startswith(place.version)]


class TestRecord:
    def test_the_record_shows_the_head_and_what_the_model_is_least_and_most_sure_of(self, place):
        """With thumbnails, and why each is where it is; what is predicted of the random holdout is not shown."""
        place.rank(holdout_share=0.3)
        [record] = load_rankings(place.repository)
        assert (record.name, record.version, record.project, record.title) == (place.version, place.version, 5, "Pets")
        assert (record.tasks, record.failed, record.strategy) == (TASKS, 0, DEFAULT_STRATEGY)
        assert record.mean_bald == pytest.approx(np.mean([bald_of(task) for task in place.studio.tasks.values()]))
        order = place.studio.order()
        sampled = dict(zip(order, is_held_out(5, np.array(order), 0.3).tolist(), strict=True))
        assert [image.task for image in record.first] == order[:12]
        assert {image.label is None for image in record.first if sampled[image.task]} == {True}
        tasks = {task: data for task, data in place.studio.tasks.items() if not sampled[task]}
        by_bald = sorted(tasks, key=lambda task: -bald_of(tasks[task]))
        assert [image.task for image in record.most_uncertain] == by_bald[:12]
        by_probability = sorted(tasks, key=lambda task: -passes_of(tasks[task]).mean(axis=0).max())
        assert [image.task for image in record.most_confident] == by_probability[:12]
        shown = record.most_uncertain[0]
        assert Image.open(io.BytesIO(shown.thumbnail)).size == (40, 20)
        assert shown.label in {"cat", "dog"}
        assert shown.score == place.studio.scores(place.version)[shown.task][0]

    def test_the_random_holdout_is_imported_with_its_score_and_without_a_label(self, place):
        """Label Studio ticks a label that is predicted, and what is measured on must not be agreed to."""
        place.rank(holdout_share=0.3)
        sampled = set(
            np.array(list(place.studio.tasks))[is_held_out(5, np.array(list(place.studio.tasks)), 0.3)].tolist()
        )
        assert 3 < len(sampled) < TASKS
        assert {each["task"] for each in ours(place) if not each["result"]} == sampled
        later = [place.studio.add_task(**picture(number)) for number in range(100, 120)]
        place.rank(holdout_share=0.3)
        sampled_later = np.array(later)[is_held_out(5, np.array(later), 0.3)].tolist()
        assert sampled_later
        assert {each["task"] for each in ours(place) if not each["result"]} == sampled | set(sampled_later)
        assert all(0 <= score <= 1 for [score] in place.studio.scores(place.version).values())

    def test_without_an_random_holdout_every_prediction_has_its_label(self, place):
        """`--holdout-share 0`."""
        place.rank(holdout_share=0.0)
        assert all(each["result"] for each in ours(place))

    def test_an_image_that_cannot_be_fetched_is_left_out(self, place):
        """A record is worth having without it."""
        place.rank(strategy="bald")
        first = load_rankings(place.repository)[0].first[0].task
        place.studio.tasks[first]["data"] = {"image": "data:image/png;base64,AAAA"}
        place.rank(force=True, strategy="bald")
        assert first not in {image.task for image in load_rankings(place.repository)[0].first}


class TestAgain:
    def test_a_second_ranking_places_only_what_is_new(self, place):
        """By its own score, which is on the same scale; what was ranked stays where it was."""
        place.rank()
        before = place.studio.scores(place.version)
        sampled = lambda task: is_held_out(5, np.array([task]), 0.1)[0]  # noqa: E731
        later = [place.studio.add_task(**picture(number)) for number in range(100, 120)]
        summary = place.rank()
        assert (summary.tasks, summary.imported) == (20, 20)
        place.check_whole(place.version)
        after = place.studio.scores(place.version)
        assert before.items() <= after.items()
        for task in later:
            if not sampled(task):
                plain = 1 - bald_of(place.studio.tasks[task]) / np.log(2)
                assert after[task] == [pytest.approx(plain, abs=1e-6)]
        assert load_rankings(place.repository)[0].tasks == TASKS + 20
        assert place.server.tasks_asked == list(place.studio.tasks)

    def test_tasks_of_the_random_holdout_are_placed_by_chance_also_later(self, place):
        """Else the labels that measure would be those that the strategy asks for."""
        place.rank(holdout_share=0.5)
        later = [place.studio.add_task(**picture(number)) for number in range(100, 140)]
        place.rank(holdout_share=0.5)
        sampled = [task for task in later if is_held_out(5, np.array([task]), 0.5)[0]]
        scores = [place.studio.scores(place.version)[task][0] for task in sampled]
        balds = [bald_of(place.studio.tasks[task]) for task in sampled]
        assert len(sampled) > 10
        assert abs(np.corrcoef(scores, balds)[0, 1]) < 0.6
        plain = [1 - bald / np.log(2) for bald in balds]
        assert not np.allclose(sorted(scores), sorted(plain), atol=1e-6)

    def test_with_nothing_new_no_server_is_asked(self, place):
        """And leftovers are put right all the same."""
        place.rank()
        asked = len(place.server.requests)
        place.studio.predict(7, place.version, place.studio.scores(place.version)[7][0])
        place.studio.project.update(model_version="yolo", sampling="Sequential")
        place.studio.predict(8, f"{place.version}.r2")
        summary = place.rank()
        assert (summary.tasks, summary.removed) == (0, 1)
        place.check_whole(place.version)
        assert len(place.server.requests) == asked

    def test_ranking_twice_writes_nothing_the_second_time(self, place):
        """Each change of a project is an event for all that listen."""
        place.rank()
        before = len(place.studio.requests)
        place.rank()
        assert {request.method for request in place.studio.requests[before:]} == {"GET"}

    def test_again_ranks_all_anew_under_the_next_name(self, place):
        """The one before goes."""
        place.rank()
        assert place.rank(force=True, strategy="random").ranking == f"{place.version}.r2"
        place.check_whole(f"{place.version}.r2")
        assert place.rank().tasks == 0
        assert place.rank(force=True).ranking == f"{place.version}.r3"
        place.check_whole(f"{place.version}.r3")

    def test_a_new_version_ranks_all_anew(self, place):
        """And what the one before had said goes when it is whole."""
        first = place.version
        place.rank()
        place.publish()
        old = []
        place.studio.before = lambda request: old.append(
            bool(place.studio.scores(first)) or place.studio.project["model_version"] == place.version
        )
        assert place.rank().tasks == TASKS
        place.check_whole(place.version)
        assert all(old)

    def test_a_version_that_was_rolled_back_to_ranks_again(self, place):
        """Its predictions were removed when it was replaced."""
        first = place.version
        place.rank()
        place.publish()
        place.rank()
        place.repository.rollback(first)
        place.version = place.server.version = first
        place.rank()
        place.check_whole(first)

    def test_predictions_that_label_studio_fetched_by_itself_are_replaced(self, place):
        """A task that is opened before the ranking is scored by /predict, under the same version."""
        for task in (1, 2, 3):
            place.studio.predict(task, place.version, 0.123)
        place.rank()
        place.check_whole(place.version)
        assert 0.123 not in [score for [score] in place.studio.scores(place.version).values()]

    def test_where_label_studio_fetched_many_the_ranking_takes_the_next_name(self, place, monkeypatch):
        """To remove a name at once is far cheaper than to remove predictions one by one."""
        monkeypatch.setattr(rank_module, "_FEW_STRAYS", 5)
        for task in range(1, 8):
            place.studio.predict(task, place.version, 0.123)
        assert place.rank().ranking == f"{place.version}.r2"
        place.check_whole(f"{place.version}.r2")

    def test_a_ranking_whose_predictions_were_deleted_is_made_again(self, place):
        """Somebody may have cleared the project."""
        place.rank()
        place.studio.predictions.clear()
        place.studio.project["model_version"] = ""
        assert place.rank().tasks == TASKS
        place.check_whole(place.version)


@pytest.fixture
def hasty(monkeypatch):
    """Waiting before asking again takes no time; how long it was is returned."""
    pauses = []
    waiting = {"monotonic": lambda: float(sum(pauses)), "sleep": pauses.append}
    monkeypatch.setattr("contract.label_studio.time", SimpleNamespace(**waiting))
    monkeypatch.setattr(retries, "Insistence", partial(Insistence, clock=waiting["monotonic"], sleep=waiting["sleep"]))
    return pauses


def picture_of(place, task):
    return {each["task"]: each for each in ours(place)}[task]


@pytest.mark.usefixtures("hasty")
class TestNothingIsLost:
    """A ranking is not replaced by less."""

    def check_untouched(self, place, before):
        assert json.dumps([place.studio.project, place.studio.predictions]) == before
        assert {request.method for request in place.studio.requests} == {"GET"}

    @pytest.fixture
    def ranked(self, place):
        """A project ranked by a version that another one has replaced."""
        place.rank()
        place.former = place.version
        place.publish()
        place.server.asked.clear()
        return place

    @pytest.mark.parametrize("options", [{}, {"again": True}, {"strategy": "random"}])
    @pytest.mark.parametrize("kind", ["away", "broken"])
    def test_with_the_image_host_down_the_ranking_stays(self, ranked, kind, options):
        """It says how many of how many, and why; once the host is back the pool is ranked whole."""
        setattr(ranked.server, kind, set(range(6, TASKS + 1)))
        ranked.studio.annotate(6, "cat")
        ranked.studio.requests.clear()
        before = json.dumps([ranked.studio.project, ranked.studio.predictions])
        reason = {"away": "24, such as task .*cannot be reached", "broken": "24, such as task .*no such file"}[kind]
        with pytest.raises(ConfigError, match=rf"only 5 of 29 tasks that {ranked.former} ranks .*{reason}"):
            ranked.rank(**options)
        self.check_untouched(ranked, before)
        assert load_rankings(ranked.repository)[0].name == ranked.former
        setattr(ranked.server, kind, set())
        assert ranked.rank(**options).tasks == TASKS - 1
        ranked.check_whole(ranked.version)

    def test_with_the_host_down_for_a_while_it_is_waited_for(self, ranked):
        """And nothing is missing from the ranking."""
        ranked.server.away = set(range(6, TASKS + 1))
        ranked.server.before = lambda body: ranked.server.away.clear() if len(ranked.server.asked) > 3 else None
        summary = ranked.rank()
        assert (summary.tasks, summary.failed) == (TASKS, 0)
        assert len(ranked.server.tasks_asked) == TASKS + 3 * (TASKS - 5)
        ranked.check_whole(ranked.version)

    def test_with_label_studio_restarted_in_the_middle_the_pool_is_ranked_whole(self, ranked):
        """Images that it serves fail while it is down, and so do its own answers; then both come back."""
        down = set(range(1, 6))

        def restart(body):
            if len(ranked.server.asked) == 1:
                ranked.server.away = set(range(16, TASKS + 1))
            elif len(ranked.server.asked) == 3:
                ranked.server.away = set()

        def refuse(request):
            if ranked.server.asked and request.method == "GET" and down:
                down.pop()
                raise Gone(502)

        ranked.server.before, ranked.studio.before = restart, refuse
        assert ranked.rank().tasks == TASKS
        ranked.check_whole(ranked.version)
        assert not down
        reasons = {each["result"][0]["meta"]["reason"] for each in ours(ranked)}
        assert not reasons & {LATER, SCORED_LATER, KEPT}

    @pytest.mark.parametrize("strategy", ["balanced-bald-margin", "batch-bald"])
    def test_a_few_images_that_cannot_be_had_keep_their_places_and_are_marked(self, ranked, strategy):
        """The share of the queue before them stays what it was; their labels are still the former version's."""
        before = ranked.studio.order()
        first = before[4]
        ranked.server.away = {first}
        summary = ranked.rank(strategy=strategy)
        assert (summary.tasks, summary.failed, summary.kept, summary.imported) == (TASKS - 1, 1, 1, TASKS)
        assert "1 not scored, of which 1 keep their places" in summary.say()
        ranked.check_whole(ranked.version)
        assert ranked.studio.order().index(first) == 4
        [region] = picture_of(ranked, first)["result"]
        assert region["meta"]["reason"] == KEPT
        assert region["meta"]["model_version"] == ranked.former
        assert "rank" not in region["meta"]
        [record] = load_rankings(ranked.repository)
        assert (record.tasks, record.failed, record.unscored) == (TASKS - 1, 1, (first,))
        assert first not in {image.task for image in (*record.most_uncertain, *record.most_confident)}

    def test_places_are_kept_in_their_order(self, ranked):
        """Of many, too, where somebody says that they are lost for good; labelled tasks are in nobody's way."""
        for task in ranked.studio.order()[:6]:
            ranked.studio.annotate(task, "cat")
        before = ranked.studio.order()
        ranked.server.broken = set(before[::2])
        summary = ranked.rank(incomplete=True)
        assert (summary.tasks, summary.kept) == (12, 12)
        ranked.check_whole(ranked.version)
        after = ranked.studio.order()
        assert [task for task in after if task in ranked.server.broken] == before[::2]
        assert all(after.index(task) == before.index(task) for task in ranked.server.broken)

    def test_what_kept_its_place_is_scored_when_it_can_be(self, ranked):
        """Nobody has to ask for it again, and it does not lose its place meanwhile."""
        first = ranked.studio.order()[0]
        ranked.server.away = {first}
        ranked.rank()
        kept = ranked.studio.scores(ranked.version)[first]
        assert ranked.rank().failed == 1
        assert ranked.studio.scores(ranked.version)[first] == kept
        ranked.server.away = set()
        summary = ranked.rank()
        assert (summary.tasks, summary.failed) == (1, 0)
        ranked.check_whole(ranked.version)
        meta = picture_of(ranked, first)["result"][0]["meta"]
        assert (meta["reason"], meta["model_version"]) == (SCORED_LATER, ranked.version)
        [record] = load_rankings(ranked.repository)
        assert (record.tasks, record.failed, record.unscored) == (TASKS, 0, ())

    def test_an_image_that_keeps_failing_is_no_loss_of_the_next_ranking(self, ranked):
        """However small the pool becomes, a few broken images never stop it from being ranked."""
        lost = ranked.studio.order()[-2:]
        ranked.server.broken = set(lost)
        ranked.rank(incomplete=True)
        for task in [task for task in ranked.studio.order() if task not in lost][4:]:
            ranked.studio.annotate(task, "cat")
        for _ in range(3):
            ranked.publish()
            assert ranked.rank().kept == 2
            ranked.check_whole(ranked.version)
            assert ranked.studio.order()[-2:] == lost
        for task in ranked.studio.order()[:-2]:
            ranked.studio.annotate(task, "cat")
        ranked.publish()
        assert "2 tasks wait in their order; 2 images cannot be scored" in ranked.rank().say()
        assert ranked.studio.order() == lost

    def test_many_that_could_not_be_scored_at_first_are_ranked_with_all_others_in_the_end(self, place):
        """There was no ranking to lose; placed one by one they would stand out of the order."""
        place.server.away = set(range(6, TASKS + 1))
        assert (place.rank().tasks, len(place.studio.order())) == (5, 5)
        place.server.away = set()
        assert place.rank().ranking == f"{place.version}.r2"
        place.check_whole(f"{place.version}.r2")
        told = {each["task"]: each["result"][0]["meta"] for each in ours(place)}
        assert [told[task]["rank"] for task in place.studio.order()] == list(range(1, TASKS + 1))

    def test_a_plan_that_was_begun_is_brought_to_its_end_without_the_images(self, ranked, monkeypatch):
        """It holds the scores; tasks that went are left alone, those that came are placed when they can be."""
        with monkeypatch.context() as patch:
            patch.setattr(labelstudio, "switch_model_version", raise_killed)
            with pytest.raises(Killed):
                ranked.rank()
        for task in ranked.unlabelled[:10]:
            ranked.studio.annotate(task, "cat")
        new = [ranked.studio.add_task(**picture(number)) for number in (500, 501)]
        ranked.server.away = set(ranked.studio.tasks)
        assert ranked.rank().failed == 2
        assert set(ranked.studio.scores(ranked.version)) == set(ranked.studio.tasks) - set(new)
        ranked.server.away = set()
        assert ranked.rank().tasks == 2
        ranked.check_whole(ranked.version)

    def test_predictions_of_a_version_that_is_published_no_more_are_removed_too(self, ranked):
        """Old versions may be deleted; the record of the last ranking still names them."""
        shutil.rmtree(ranked.repository.folder / ranked.former)
        ranked.server.away = {ranked.studio.order()[0]}
        assert ranked.rank().kept == 1
        ranked.check_whole(ranked.version)

    def test_reasons_are_told_in_groups(self, place, caplog):
        """A host that is down is one reason, however many images it holds."""
        for number in range(1, 5):
            place.studio.tasks[number]["data"] = {"image": f"http://images/{number}.png"}
        place.server.away, place.server.broken = {1, 2, 3, 4}, {7}
        with caplog.at_level(logging.INFO):
            place.rank()
        assert "5 of 30 images cannot be scored: 4, such as task 1: http://images/1.png cannot be" in caplog.text
        assert "| 1, such as task 7: no such file" in caplog.text


OTHERS = CONFIG.replace("cat", "car").replace("dog", "b\u00fcs")


class TestOtherLabels:
    """A project whose labels the version does not have."""

    @pytest.mark.parametrize("options", [{}, {"dry_run": True}, {"again": True}])
    @pytest.mark.parametrize("ranked", [False, True])
    def test_it_is_refused_with_both_lists_and_nothing_changes(self, place, options, ranked):
        """Neither its order nor its sampling, and no server is asked."""
        if ranked:
            place.rank()
        place.studio.project["label_config"] = OTHERS
        place.studio.requests.clear(), place.server.requests.clear()
        before = json.dumps([place.studio.project, place.studio.predictions])
        with pytest.raises(LabelMismatch, match=rf"{place.version} \(cat, dog\).*\(label: car, b\u00fcs\)"):
            place.rank(**options)
        assert json.dumps([place.studio.project, place.studio.predictions]) == before
        assert {request.method for request in place.studio.requests} == {"GET"}
        assert not place.server.requests

    def test_a_ranking_that_was_begun_before_is_not_brought_to_its_end(self, place, monkeypatch):
        """Its labels are none of the project's any more."""
        with monkeypatch.context() as patch:
            patch.setattr(labelstudio, "switch_model_version", raise_killed)
            with pytest.raises(Killed):
                place.rank()
        place.studio.project["label_config"] = OTHERS
        with pytest.raises(LabelMismatch):
            place.rank()
        assert place.studio.project["model_version"] == ""

    def test_labels_that_came_or_went_are_no_reason(self, place):
        """A labelling config may grow."""
        place.studio.project["label_config"] = CONFIG.replace('<Choice value="dog"/>', '<Choice value="eel"/>')
        place.rank()
        place.check_whole(place.version)


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing catches it."""


def killed_at(step, *, after, monkeypatch):
    """Have the request of that number be the last, before it is sent or after it was answered."""
    send, number = LabelStudioClient.send, itertools.count(1)

    def last(*args, **kwargs):
        at = next(number)
        if at == step and not after:
            raise Killed
        reply = send(*args, **kwargs)
        if at == step:
            raise Killed
        return reply

    monkeypatch.setattr(LabelStudioClient, "send", last)


class TestKilled:
    @pytest.mark.slow
    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    def test_killed_at_any_request_a_second_run_makes_it_whole(self, place, monkeypatch, after):
        """One prediction a task, the right name, and never a model version without predictions."""
        place.rank()
        monkeypatch.setattr(reconcile, "IMPORT_TASKS", 12)
        place.studio.before = lambda request: check_shown(place)
        steps, done = 0, False
        while not done:
            place.publish()
            steps += 1
            with monkeypatch.context() as patch:
                killed_at(steps, after=after, monkeypatch=patch)
                done = finished(place)
            place.studio.delete_task(place.unlabelled[0])
            place.studio.annotate(place.unlabelled[0], "cat")
            place.studio.add_task(**picture(1000 + steps))
            place.rank()
            place.check_whole(place.version)
            assert place.studio.scores("yolo") or 3 not in place.studio.tasks
        assert steps > 15

    @pytest.mark.parametrize("asked_again", [False, True])
    def test_a_ranking_again_that_was_killed_goes_on_under_its_own_name(self, place, monkeypatch, asked_again):
        """Nobody has to ask for it again, and who does gets no third one."""
        place.rank()
        with monkeypatch.context() as patch:
            patch.setattr(labelstudio, "switch_model_version", raise_killed)
            with pytest.raises(Killed):
                place.rank(force=True)
        assert place.rank(force=asked_again).ranking == f"{place.version}.r2"
        place.check_whole(f"{place.version}.r2")

    def test_scores_that_were_got_are_not_got_again(self, place, monkeypatch):
        """Scoring is what takes the time."""
        monkeypatch.setattr("trainer.ranking.server.REQUEST_TASKS", 7)
        monkeypatch.setattr("trainer.ranking.server._REQUESTS_AT_ONCE", 1)
        place.server.before = lambda body: (401, {}) if len(place.server.asked) > 2 else None
        with pytest.raises(ConfigError, match="LABELNEXT_BASIC_AUTH"):
            place.rank()
        place.server.before = lambda body: None
        place.server.asked.clear()
        place.rank()
        assert len(place.server.tasks_asked) == TASKS - 14
        place.check_whole(place.version)

    def test_the_order_that_was_begun_is_kept(self, place, monkeypatch):
        """Labels that came in meanwhile would give another one, and half of each would be none."""
        monkeypatch.setattr(reconcile, "IMPORT_TASKS", 10)
        with monkeypatch.context() as patch:
            taken = []
            take = labelstudio.import_predictions
            patch.setattr(
                labelstudio,
                "import_predictions",
                lambda *args: raise_killed() if taken else taken.append(take(*args)),
            )
            with pytest.raises(Killed):
                place.rank()
        for task in place.unlabelled[:5]:
            place.studio.annotate(task, "dog")
        place.server.version = "gone"
        place.rank()
        ranks = [each["result"][0]["meta"]["rank"] for each in ours(place)]
        assert len(set(ranks)) == len(ranks)
        by_score = sorted(ours(place), key=lambda each: each["score"])
        assert [each["result"][0]["meta"]["rank"] for each in by_score] == sorted(ranks)

    def test_a_new_version_does_not_go_on_with_the_old_ones_plan(self, place, monkeypatch):
        """What was imported of it goes."""
        with monkeypatch.context() as patch:
            patch.setattr(labelstudio, "switch_model_version", raise_killed)
            with pytest.raises(Killed):
                place.rank()
        place.publish()
        assert place.rank().imported == TASKS
        place.check_whole(place.version)
        changes = [json.loads(request.body) for request in place.studio.requests if request.method == "PATCH"]
        assert [change["model_version"] for change in changes] == [place.version]


def raise_killed(*args, **kwargs):
    raise Killed


def check_shown(place):
    shown = place.studio.project["model_version"]
    assert not shown or place.studio.scores(shown)


def finished(place):
    try:
        place.rank()
    except Killed:
        return False
    return True


class TestMeanwhile:
    @pytest.mark.parametrize("gone", [(), (2,)], ids=["labelled", "deleted"])
    def test_tasks_that_are_labelled_or_deleted_while_images_are_scored_are_left_alone(self, place, gone):
        """Whatever was computed of them."""

        def happen(body):
            if len(place.server.asked) == 1:
                place.studio.annotate(1, "cat")
                for task in gone:
                    place.studio.delete_task(task)

        place.server.before = happen
        place.rank()
        assert set(place.studio.scores(place.version)) == set(place.studio.tasks) - {1}

    def test_a_version_published_while_images_are_scored_ends_the_ranking(self, place, monkeypatch):
        """Before anything is imported; the old one is still shown."""
        patience = Patience(pause_s=0.01)
        monkeypatch.setattr(planning, "Server", lambda *args: Server(*args, patience=patience))
        place.server.before = lambda body: place.publish() if len(place.server.asked) == 1 else None
        with pytest.raises(Exception, match="rank again by the new one"):
            place.rank()
        assert place.studio.project["model_version"] == ""
        place.rank()
        place.check_whole(place.version)

    def test_old_predictions_that_cannot_be_removed_now_do_no_harm(self, place, caplog):
        """The next ranking removes them."""
        place.rank()
        place.publish()

        def refuse(request):
            if request.method == "DELETE":
                raise Gone(504)

        place.studio.before = refuse
        assert place.rank().removed == 0
        assert place.studio.project["model_version"] == place.version
        assert "does no harm" in caplog.text
        place.studio.before = lambda request: None
        assert place.rank().removed == TASKS
        place.check_whole(place.version)

    def test_one_ranking_at_a_time(self, place):
        """A second one says so at once."""
        seen = []

        def second(body):
            if not seen:
                seen.append(body)
                with pytest.raises(ConfigError, match="is being ranked by another process"):
                    place.rank()

        place.server.before = second
        place.rank()
        assert seen


class TestColdStart:
    @pytest.fixture
    def cold(self, place, monkeypatch):
        """No version yet; embeddings that follow from the pixels' colour."""
        embed = lambda images: images.mean(axis=(1, 2)) / 255  # noqa: E731
        monkeypatch.setattr(coldstart, "Convolutions", lambda *_: SimpleNamespace(embed=embed))
        empty = Repository(place.repository.root, "birds")
        place.environment = dataclasses.replace(place.environment, model="birds")
        place.repository = empty
        return place

    def test_before_there_is_a_version_the_pool_is_covered(self, cold):
        """Evenly spaced scores without a label, and no server is asked."""
        summary = cold.rank()
        assert (summary.ranking, summary.version, summary.strategy) == ("cold-start-birds", None, "cold-start")
        cold.check_whole("cold-start-birds")
        scores = sorted(score for [score] in cold.studio.scores("cold-start-birds").values())
        np.testing.assert_allclose(np.diff(scores), 1 / TASKS)
        assert {json.dumps(each["result"]) for each in cold.studio.predictions.values()} == {"[]"}
        assert not cold.server.requests
        [record] = load_rankings(cold.repository)
        assert (record.version, record.mean_bald) == (None, None)
        assert (record.most_uncertain, record.most_confident) == ((), ())
        assert len(record.first) == 12
        assert record.first[0].label is None

    def test_tasks_that_come_later_find_their_places(self, cold):
        """Spread over the queue."""
        cold.rank()
        for number in range(100, 110):
            cold.studio.add_task(**picture(number))
        assert cold.rank().tasks == 10
        cold.check_whole("cold-start-birds")

    def test_the_first_version_takes_over(self, cold):
        """And what was there before goes."""
        cold.rank()
        cold.publish()
        cold.rank()
        cold.check_whole(cold.version)

    def test_images_that_cannot_be_had_are_named(self, cold, caplog):
        """By the trainer itself, that fetches them."""
        cold.studio.tasks[1]["data"] = {"image": "data:image/png;base64,AAAA"}
        cold.studio.tasks[2]["data"] = {"text": "no image"}
        assert cold.rank().failed == 2
        assert "task 2: its data holds no image reference under 'image'" in caplog.text

    def test_images_are_embedded_at_the_size_that_was_asked_for(self, cold, monkeypatch):
        """What was embedded at another size before is embedded anew."""
        shapes = []

        def embed(images):
            shapes.append(images.shape[1:])
            return images.mean(axis=(1, 2)) / 255

        monkeypatch.setattr(coldstart, "Convolutions", lambda *_: SimpleNamespace(embed=embed))
        for size in (96, 32):
            cold.rank(image_size=size, dry_run=True)
        assert shapes == [(96, 96, 3), (32, 32, 3)]

    def test_the_largest_image_is_a_setting(self, cold, caplog):
        """Of those that the trainer embeds, and of those it shows."""
        buffer = io.BytesIO()
        Image.new("L", (1100, 1000)).save(buffer, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        cold.studio.tasks[1]["data"] = {"image": uri}
        cold.environment = dataclasses.replace(cold.environment, max_megapixels=1)
        assert cold.rank(dry_run=True).failed == 1
        assert "raise LABELNEXT_MAX_MEGAPIXELS" in caplog.text
        cold.environment = dataclasses.replace(cold.environment, max_megapixels=2)
        assert cold.rank(dry_run=True).failed == 0

    def test_images_are_embedded_a_portion_at_a_time_and_once(self, cold, monkeypatch):
        """Memory is bounded, and a run that was killed goes on."""
        monkeypatch.setattr(pool, "_EMBEDDED_AT_ONCE", 8)
        sizes = []

        def embed(images):
            sizes.append(len(images))
            if len(sizes) == 3:
                raise Killed
            return images.mean(axis=(1, 2)) / 255

        monkeypatch.setattr(coldstart, "Convolutions", lambda *_: SimpleNamespace(embed=embed))
        with pytest.raises(Killed):
            cold.rank()
        cold.rank()
        assert sizes == [8, 8, 8, 8, 6]
