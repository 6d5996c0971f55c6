import logging
import shutil

import pytest

from contract.errors import ConfigError
from contract.scores.ranking import load_rankings
from tests.trainer.ranking.project import TASKS, image_data, meta_by_task
from tests.trainer.studio import Aborted
from trainer.ranking.predictions import ADDED_LATER, KEPT, SCORED_LATER


@pytest.mark.usefixtures("_fake_clock")
class TestUnscored:
    @pytest.fixture
    def ranked(self, project):
        """A project ranked by an earlier version."""
        project.rank()
        project.former = project.version
        project.publish()
        project.server.bodies.clear()
        return project

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("kind", "options", "reason"),
        [
            ("unreachable", {}, "cannot be reached"),
            ("broken", {"force": True, "strategy": "random"}, "no such file"),
        ],
    )
    def test_the_ranking_stays_if_many_images_cannot_be_scored(self, ranked, kind, options, reason):
        setattr(ranked.server, kind, set(range(6, TASKS + 1)))
        ranked.studio.annotate(6, "cat")
        ranked.studio.requests.clear()
        before = ranked.dump()
        reason = rf"only 5 of 29 tasks that {ranked.former} ranks .*24, such as task .*{reason}"
        with pytest.raises(ConfigError, match=reason):
            ranked.rank(**options)
        assert ranked.dump() == before
        assert {request.method for request in ranked.studio.requests} == {"GET"}
        assert load_rankings(ranked.repository)[0].name == ranked.former
        setattr(ranked.server, kind, set())
        assert ranked.rank(**options).tasks == TASKS - 1
        ranked.check_ranked_by(ranked.version)

    def test_a_restart_of_label_studio_is_waited_for(self, ranked):
        down = set(range(1, 6))

        def restart(body):
            if len(ranked.server.bodies) == 1:
                ranked.server.unreachable = set(range(16, TASKS + 1))
            elif len(ranked.server.bodies) == 3:
                ranked.server.unreachable = set()

        def refuse(request):
            if ranked.server.bodies and request.method == "GET" and down:
                down.pop()
                raise Aborted(502)

        ranked.server.before, ranked.studio.before = restart, refuse
        assert ranked.rank().tasks == TASKS
        ranked.check_ranked_by(ranked.version)
        assert not down
        assert not {meta["reason"] for meta in meta_by_task(ranked).values()} & {ADDED_LATER, SCORED_LATER, KEPT}

    @pytest.mark.parametrize("strategy", ["balanced-cover", "batch-bald"])
    def test_a_few_unscored_images_keep_their_places(self, ranked, strategy):
        before = ranked.studio.order()
        first = before[4]
        ranked.server.unreachable = {first}
        summary = ranked.rank(strategy=strategy)
        assert (summary.tasks, summary.failed, summary.kept, summary.imported) == (TASKS - 1, 1, 1, TASKS)
        assert "1 not scored, of which 1 keep their places" in summary.describe()
        ranked.check_ranked_by(ranked.version)
        assert ranked.studio.order().index(first) == 4
        meta = meta_by_task(ranked)[first]
        assert (meta["reason"], meta["model_version"], meta.get("rank")) == (KEPT, ranked.former, None)
        [record] = load_rankings(ranked.repository)
        assert (record.tasks, record.failed, record.unscored) == (TASKS - 1, 1, (first,))
        assert first not in {image.task for image in (*record.most_uncertain, *record.most_confident)}
        kept = ranked.studio.scores(ranked.version)[first]
        assert ranked.rank().failed == 1
        assert ranked.studio.scores(ranked.version)[first] == kept
        ranked.server.unreachable = set()
        summary = ranked.rank()
        assert (summary.tasks, summary.failed) == (1, 0)
        ranked.check_ranked_by(ranked.version)
        meta = meta_by_task(ranked)[first]
        assert (meta["reason"], meta["model_version"]) == (SCORED_LATER, ranked.version)
        [record] = load_rankings(ranked.repository)
        assert (record.tasks, record.failed, record.unscored) == (TASKS, 0, ())

    def test_unscored_images_keep_their_order(self, ranked):
        for task in ranked.studio.order()[:6]:
            ranked.studio.annotate(task, "cat")
        before = ranked.studio.order()
        ranked.server.broken = set(before[::2])
        summary = ranked.rank(incomplete=True)
        assert (summary.tasks, summary.kept) == (12, 12)
        ranked.check_ranked_by(ranked.version)
        after = ranked.studio.order()
        assert [task for task in after if task in ranked.server.broken] == before[::2]
        assert all(after.index(task) == before.index(task) for task in ranked.server.broken)

    @pytest.mark.slow
    def test_images_that_failed_before_do_not_count_as_lost(self, ranked):
        unscored = ranked.studio.order()[-2:]
        ranked.server.broken = set(unscored)
        ranked.rank(incomplete=True)
        for task in [task for task in ranked.studio.order() if task not in unscored][4:]:
            ranked.studio.annotate(task, "cat")
        ranked.publish()
        assert ranked.rank().kept == 2
        ranked.check_ranked_by(ranked.version)
        assert ranked.studio.order()[-2:] == unscored
        for task in ranked.studio.order()[:-2]:
            ranked.studio.annotate(task, "cat")
        ranked.publish()
        assert "2 tasks wait in their order; 2 images cannot be scored" in ranked.rank().describe()
        assert ranked.studio.order() == unscored

    def test_all_tasks_are_ranked_again_when_many_can_be_scored_later(self, project):
        """Placed one by one they would not fit the order."""
        project.server.unreachable = set(range(6, TASKS + 1))
        assert (project.rank().tasks, len(project.studio.order())) == (5, 5)
        project.server.unreachable = set()
        assert project.rank().ranking == f"{project.version}.r2"
        project.check_ranked_by(f"{project.version}.r2")
        meta = meta_by_task(project)
        assert [meta[task]["rank"] for task in project.studio.order()] == list(range(1, TASKS + 1))

    def test_an_interrupted_plan_is_completed_without_the_images(self, ranked, monkeypatch):
        ranked.rank_until_switch(monkeypatch)
        for task in ranked.unlabelled[:10]:
            ranked.studio.annotate(task, "cat")
        new = [ranked.studio.add_task(**image_data(number)) for number in (500, 501)]
        ranked.server.unreachable = set(ranked.studio.tasks)
        assert ranked.rank().failed == 2
        assert set(ranked.studio.scores(ranked.version)) == set(ranked.studio.tasks) - set(new)
        ranked.server.unreachable = set()
        assert ranked.rank().tasks == 2
        ranked.check_ranked_by(ranked.version)

    def test_predictions_of_a_deleted_version_are_removed(self, ranked):
        shutil.rmtree(ranked.repository.folder / ranked.former)
        ranked.server.unreachable = {ranked.studio.order()[0]}
        assert ranked.rank().kept == 1
        ranked.check_ranked_by(ranked.version)

    def test_failures_are_logged_by_reason(self, project, caplog):
        for number in range(1, 5):
            project.studio.tasks[number]["data"] = {"image": f"http://images/{number}.png"}
        project.server.unreachable, project.server.broken = {1, 2, 3, 4}, {7}
        with caplog.at_level(logging.INFO):
            project.rank()
        assert "5 of 30 images cannot be scored: 4, such as task 1: http://images/1.png cannot be" in caplog.text
        assert "| 1, such as task 7: no such file" in caplog.text
