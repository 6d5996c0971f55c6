import json

import pytest

from contract.errors import ConfigError, Unavailable
from tests.trainer.ranking.project import TASKS, image_data, meta_by_task
from trainer.ranking import planning, reconcile
from trainer.scoring.server import Server, Timeouts


def check_sorted(project):
    """Check that the project is never sorted by a version without predictions."""
    version = project.studio.project["model_version"]
    assert not version or project.studio.scores(version)


class TestKilled:
    @pytest.mark.slow
    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    def test_rank_completes_after_a_kill_at_any_request(self, project, monkeypatch, after):
        project.rank()
        monkeypatch.setattr(reconcile, "IMPORT_TASKS", 12)
        project.studio.before = lambda request: check_sorted(project)
        steps, killed = 0, True
        while killed:
            project.publish()
            steps += 1
            killed = project.run_until(
                steps, monkeypatch, project.rank, counts=lambda method, _: method != "GET" or not after, after=after
            )
            project.studio.delete_task(project.unlabelled[0])
            project.studio.annotate(project.unlabelled[0], "cat")
            for number in range(2):
                project.studio.add_task(**image_data(1000 + 2 * steps + number))
            project.rank()
            project.check_ranked_by(project.version)
            assert project.studio.scores("yolo") or 3 not in project.studio.tasks
        assert steps > (5 if after else 15)  # being killed before or after a GET makes no difference

    @pytest.mark.parametrize("force", [False, True])
    def test_a_killed_forced_ranking_is_resumed_under_its_name(self, project, monkeypatch, force):
        project.rank()
        project.rank_until_switch(monkeypatch, force=True)
        for number in range(2):
            project.studio.add_task(**image_data(1000 + number))
        summary = project.rank(force=force)
        assert (summary.ranking, summary.tasks) == (f"{project.version}.r2", TASKS + 2)
        assert (summary.imported, summary.removed) == (2, TASKS)
        project.check_ranked_by(f"{project.version}.r2")

    def test_resume_after_kill_keeps_the_order(self, project, monkeypatch):
        """Although labels added since would lead to another one."""
        monkeypatch.setattr(reconcile, "IMPORT_TASKS", 10)
        assert project.run_until(2, monkeypatch, project.rank, counts=lambda method, _: method == "POST")
        for task in project.unlabelled[:5]:
            project.studio.annotate(task, "dog")
        project.server.version = "gone"
        project.rank()
        scores = project.studio.scores(project.version)
        ranks = [meta["rank"] for _, meta in sorted(meta_by_task(project).items(), key=lambda each: scores[each[0]])]
        assert ranks == sorted(set(ranks))

    def test_a_new_version_does_not_resume_the_plan_of_another(self, project, monkeypatch):
        project.rank_until_switch(monkeypatch)
        project.publish()
        assert project.rank().imported == TASKS
        project.check_ranked_by(project.version)
        changes = [json.loads(request.body) for request in project.studio.requests if request.method == "PATCH"]
        assert [change["model_version"] for change in changes] == [project.version]


class TestConcurrentChanges:
    def test_tasks_labelled_or_deleted_during_scoring_are_skipped(self, project):
        def change_tasks(body):
            if len(project.server.bodies) == 1:
                project.studio.annotate(1, "cat")
                project.studio.delete_task(2)

        project.server.before = change_tasks
        project.rank()
        assert set(project.studio.scores(project.version)) == set(project.studio.tasks) - {1}

    def test_a_version_published_during_scoring_ends_the_ranking(self, project, monkeypatch):
        timeouts = Timeouts(pause_s=0.01)
        monkeypatch.setattr(planning, "Server", lambda *args: Server(*args, timeouts=timeouts))
        project.server.before = lambda body: project.publish() if len(project.server.bodies) == 1 else None
        with pytest.raises(Unavailable, match="rank again with the new one"):
            project.rank()
        assert project.studio.project["model_version"] == ""
        project.rank()
        project.check_ranked_by(project.version)

    def test_old_predictions_are_removed_later_after_an_error(self, project, caplog):
        project.rank()
        project.publish()
        project.studio.refuse("DELETE", 504)
        assert project.rank().removed == 0
        assert project.studio.project["model_version"] == project.version
        assert "the next ranking tries again" in caplog.text
        project.studio.before = lambda request: None
        assert project.rank().removed == TASKS
        project.check_ranked_by(project.version)

    def test_rejects_a_concurrent_ranking_of_the_project(self, project):
        bodies = []

        def rank_again(body):
            if not bodies:
                bodies.append(body)
                with pytest.raises(ConfigError, match="is being ranked by another process"):
                    project.rank()

        project.server.before = rank_again
        project.rank()
        assert bodies
