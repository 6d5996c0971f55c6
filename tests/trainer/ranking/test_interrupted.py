import itertools
import json

import pytest

from contract.errors import ConfigError
from contract.label_studio import LabelStudioClient
from tests.trainer.ranking.rig import TASKS, Killed, ours, picture, raise_killed
from trainer import labelstudio
from trainer.ranking import planning, reconcile
from trainer.scoring.server import Patience, Server


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


def check_shown(rig):
    shown = rig.studio.project["model_version"]
    assert not shown or rig.studio.scores(shown)


def finished(rig):
    try:
        rig.rank()
    except Killed:
        return False
    return True


class TestKilled:
    @pytest.mark.slow
    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    def test_killed_at_any_request_a_second_run_makes_it_whole(self, rig, monkeypatch, after):
        """One prediction a task, the right name, and never a model version without predictions."""
        rig.rank()
        monkeypatch.setattr(reconcile, "IMPORT_TASKS", 12)
        rig.studio.before = lambda request: check_shown(rig)
        steps, done = 0, False
        while not done:
            rig.publish()
            steps += 1
            with monkeypatch.context() as patch:
                killed_at(steps, after=after, monkeypatch=patch)
                done = finished(rig)
            rig.studio.delete_task(rig.unlabelled[0])
            rig.studio.annotate(rig.unlabelled[0], "cat")
            for number in range(2):
                rig.studio.add_task(**picture(1000 + 2 * steps + number))
            rig.rank()
            rig.check_whole(rig.version)
            assert rig.studio.scores("yolo") or 3 not in rig.studio.tasks
        assert steps > 15

    @pytest.mark.parametrize("asked_again", [False, True])
    def test_a_ranking_again_that_was_killed_goes_on_under_its_own_name(self, rig, monkeypatch, asked_again):
        """Nobody has to ask for it again, and who does gets no third one."""
        rig.rank()
        with monkeypatch.context() as patch:
            patch.setattr(labelstudio, "switch_model_version", raise_killed)
            with pytest.raises(Killed):
                rig.rank(force=True)
        assert rig.rank(force=asked_again).ranking == f"{rig.version}.r2"
        rig.check_whole(f"{rig.version}.r2")

    def test_scores_that_were_got_are_not_got_again(self, rig, monkeypatch):
        """Scoring is what takes the time."""
        monkeypatch.setattr("trainer.scoring.portions.LEAST_TASKS", 7)
        monkeypatch.setattr("trainer.scoring.portions.MOST_TASKS", 7)
        monkeypatch.setattr("trainer.scoring.server._REQUESTS_AT_ONCE", 1)
        rig.server.before = lambda body: (401, {}) if len(rig.server.asked) > 2 else None
        with pytest.raises(ConfigError, match="LABELNEXT_BASIC_AUTH"):
            rig.rank()
        rig.server.before = lambda body: None
        rig.server.asked.clear()
        rig.rank()
        assert len(rig.server.tasks_asked) == TASKS - 14
        rig.check_whole(rig.version)

    def test_the_order_that_was_begun_is_kept(self, rig, monkeypatch):
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
                rig.rank()
        for task in rig.unlabelled[:5]:
            rig.studio.annotate(task, "dog")
        rig.server.version = "gone"
        rig.rank()
        ranks = [each["result"][0]["meta"]["rank"] for each in ours(rig)]
        assert len(set(ranks)) == len(ranks)
        by_score = sorted(ours(rig), key=lambda each: each["score"])
        assert [each["result"][0]["meta"]["rank"] for each in by_score] == sorted(ranks)

    def test_a_new_version_does_not_go_on_with_the_old_ones_plan(self, rig, monkeypatch):
        """What was imported of it goes."""
        with monkeypatch.context() as patch:
            patch.setattr(labelstudio, "switch_model_version", raise_killed)
            with pytest.raises(Killed):
                rig.rank()
        rig.publish()
        assert rig.rank().imported == TASKS
        rig.check_whole(rig.version)
        changes = [json.loads(request.body) for request in rig.studio.requests if request.method == "PATCH"]
        assert [change["model_version"] for change in changes] == [rig.version]


class TestMeanwhile:
    @pytest.mark.parametrize("gone", [(), (2,)], ids=["labelled", "deleted"])
    def test_tasks_that_are_labelled_or_deleted_while_images_are_scored_are_left_alone(self, rig, gone):
        """Whatever was computed of them."""

        def happen(body):
            if len(rig.server.asked) == 1:
                rig.studio.annotate(1, "cat")
                for task in gone:
                    rig.studio.delete_task(task)

        rig.server.before = happen
        rig.rank()
        assert set(rig.studio.scores(rig.version)) == set(rig.studio.tasks) - {1}

    def test_a_version_published_while_images_are_scored_ends_the_ranking(self, rig, monkeypatch):
        """Before anything is imported; the old one is still shown."""
        patience = Patience(pause_s=0.01)
        monkeypatch.setattr(planning, "Server", lambda *args: Server(*args, patience=patience))
        rig.server.before = lambda body: rig.publish() if len(rig.server.asked) == 1 else None
        with pytest.raises(Exception, match="rank again by the new one"):
            rig.rank()
        assert rig.studio.project["model_version"] == ""
        rig.rank()
        rig.check_whole(rig.version)

    def test_old_predictions_that_cannot_be_removed_now_do_no_harm(self, rig, caplog):
        """The next ranking removes them."""
        rig.rank()
        rig.publish()
        rig.studio.refuse("DELETE", 504)
        assert rig.rank().removed == 0
        assert rig.studio.project["model_version"] == rig.version
        assert "does no harm" in caplog.text
        rig.studio.before = lambda request: None
        assert rig.rank().removed == TASKS
        rig.check_whole(rig.version)

    def test_one_ranking_at_a_time(self, rig):
        """A second one says so at once."""
        seen = []

        def second(body):
            if not seen:
                seen.append(body)
                with pytest.raises(ConfigError, match="is being ranked by another process"):
                    rig.rank()

        rig.server.before = second
        rig.rank()
        assert seen
