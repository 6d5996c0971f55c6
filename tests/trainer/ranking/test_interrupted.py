import json

import pytest

from contract.errors import ConfigError
from tests.trainer.ranking.rig import TASKS, meta_of, picture
from trainer.ranking import planning, reconcile
from trainer.scoring.server import Server, Timeouts


def check_shown(rig):
    shown = rig.studio.project["model_version"]
    assert not shown or rig.studio.scores(shown)


class TestKilled:
    @pytest.mark.slow
    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    def test_killed_at_any_request_a_second_run_makes_it_whole(self, rig, monkeypatch, after):
        rig.rank()
        monkeypatch.setattr(reconcile, "IMPORT_TASKS", 12)
        rig.studio.before = lambda request: check_shown(rig)
        steps, cut = 0, True
        while cut:
            rig.publish()
            steps += 1
            cut = rig.run_until(
                steps, monkeypatch, rig.rank, counts=lambda by, _: by != "GET" or not after, after=after
            )
            rig.studio.delete_task(rig.unlabelled[0])
            rig.studio.annotate(rig.unlabelled[0], "cat")
            for number in range(2):
                rig.studio.add_task(**picture(1000 + 2 * steps + number))
            rig.rank()
            rig.check_whole(rig.version)
            assert rig.studio.scores("yolo") or 3 not in rig.studio.tasks
        assert steps > (5 if after else 15)  # a request that only reads is the same before it and after

    @pytest.mark.parametrize("asked_again", [False, True])
    def test_a_ranking_again_that_was_killed_goes_on_under_its_own_name(self, rig, monkeypatch, asked_again):
        rig.rank()
        rig.begin(monkeypatch, force=True)
        for number in range(2):
            rig.studio.add_task(**picture(1000 + number))
        found = rig.rank(force=asked_again)
        both = (f"{rig.version}.r2", TASKS + 2, 2, TASKS)
        assert (found.ranking, found.tasks, found.imported, found.removed) == both
        rig.check_whole(f"{rig.version}.r2")

    def test_the_order_that_was_begun_is_kept(self, rig, monkeypatch):
        """Labels that came in meanwhile would give another one, and half of each would be none."""
        monkeypatch.setattr(reconcile, "IMPORT_TASKS", 10)
        assert rig.run_until(2, monkeypatch, rig.rank, counts=lambda method, _: method == "POST")
        for task in rig.unlabelled[:5]:
            rig.studio.annotate(task, "dog")
        rig.server.version = "gone"
        rig.rank()
        scores = rig.studio.scores(rig.version)
        ranks = [meta["rank"] for _, meta in sorted(meta_of(rig).items(), key=lambda each: scores[each[0]])]
        assert ranks == sorted(set(ranks))

    def test_a_new_version_does_not_go_on_with_the_old_ones_plan(self, rig, monkeypatch):
        rig.begin(monkeypatch)
        rig.publish()
        assert rig.rank().imported == TASKS
        rig.check_whole(rig.version)
        changes = [json.loads(request.body) for request in rig.studio.requests if request.method == "PATCH"]
        assert [change["model_version"] for change in changes] == [rig.version]


class TestMeanwhile:
    def test_tasks_that_are_labelled_or_deleted_while_images_are_scored_are_left_alone(self, rig):
        def happen(body):
            if len(rig.server.asked) == 1:
                rig.studio.annotate(1, "cat")
                rig.studio.delete_task(2)

        rig.server.before = happen
        rig.rank()
        assert set(rig.studio.scores(rig.version)) == set(rig.studio.tasks) - {1}

    def test_a_version_published_while_images_are_scored_ends_the_ranking(self, rig, monkeypatch):
        timeouts = Timeouts(pause_s=0.01)
        monkeypatch.setattr(planning, "Server", lambda *args: Server(*args, timeouts=timeouts))
        rig.server.before = lambda body: rig.publish() if len(rig.server.asked) == 1 else None
        with pytest.raises(Exception, match="rank again by the new one"):
            rig.rank()
        assert rig.studio.project["model_version"] == ""
        rig.rank()
        rig.check_whole(rig.version)

    def test_old_predictions_that_cannot_be_removed_now_do_no_harm(self, rig, caplog):
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
        seen = []

        def second(body):
            if not seen:
                seen.append(body)
                with pytest.raises(ConfigError, match="is being ranked by another process"):
                    rig.rank()

        rig.server.before = second
        rig.rank()
        assert seen
