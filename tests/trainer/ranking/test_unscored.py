import logging
import shutil

import pytest

from contract.errors import ConfigError
from contract.scores.ranking import load_rankings
from tests.trainer.ranking.rig import TASKS, meta_of, picture
from tests.trainer.studio import Aborted
from trainer.ranking.predictions import KEPT, LATER, SCORED_LATER


@pytest.mark.usefixtures("hasty")
class TestNothingIsLost:
    @pytest.fixture
    def ranked(self, rig):
        """A project ranked by a version that another one has replaced."""
        rig.rank()
        rig.former = rig.version
        rig.publish()
        rig.server.asked.clear()
        return rig

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("kind", "options", "reason"),
        [
            ("away", {}, "cannot be reached"),
            ("broken", {"force": True, "strategy": "random"}, "no such file"),
        ],
    )
    def test_with_the_image_host_down_the_ranking_stays(self, ranked, kind, options, reason):
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
        ranked.check_whole(ranked.version)

    def test_with_label_studio_restarted_in_the_middle_the_pool_is_ranked_whole(self, ranked):
        down = set(range(1, 6))

        def restart(body):
            if len(ranked.server.asked) == 1:
                ranked.server.away = set(range(16, TASKS + 1))
            elif len(ranked.server.asked) == 3:
                ranked.server.away = set()

        def refuse(request):
            if ranked.server.asked and request.method == "GET" and down:
                down.pop()
                raise Aborted(502)

        ranked.server.before, ranked.studio.before = restart, refuse
        assert ranked.rank().tasks == TASKS
        ranked.check_whole(ranked.version)
        assert not down
        assert not {meta["reason"] for meta in meta_of(ranked).values()} & {LATER, SCORED_LATER, KEPT}

    @pytest.mark.parametrize("strategy", ["balanced-cover", "batch-bald"])
    def test_a_few_images_that_cannot_be_had_keep_their_places_until_they_can_be_scored(self, ranked, strategy):
        before = ranked.studio.order()
        first = before[4]
        ranked.server.away = {first}
        summary = ranked.rank(strategy=strategy)
        assert (summary.tasks, summary.failed, summary.kept, summary.imported) == (TASKS - 1, 1, 1, TASKS)
        assert "1 not scored, of which 1 keep their places" in summary.describe()
        ranked.check_whole(ranked.version)
        assert ranked.studio.order().index(first) == 4
        meta = meta_of(ranked)[first]
        assert (meta["reason"], meta["model_version"], meta.get("rank")) == (KEPT, ranked.former, None)
        [record] = load_rankings(ranked.repository)
        assert (record.tasks, record.failed, record.unscored) == (TASKS - 1, 1, (first,))
        assert first not in {image.task for image in (*record.most_uncertain, *record.most_confident)}
        kept = ranked.studio.scores(ranked.version)[first]
        assert ranked.rank().failed == 1
        assert ranked.studio.scores(ranked.version)[first] == kept
        ranked.server.away = set()
        summary = ranked.rank()
        assert (summary.tasks, summary.failed) == (1, 0)
        ranked.check_whole(ranked.version)
        meta = meta_of(ranked)[first]
        assert (meta["reason"], meta["model_version"]) == (SCORED_LATER, ranked.version)
        [record] = load_rankings(ranked.repository)
        assert (record.tasks, record.failed, record.unscored) == (TASKS, 0, ())

    def test_places_are_kept_in_their_order(self, ranked):
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

    @pytest.mark.slow
    def test_an_image_that_keeps_failing_is_no_loss_of_the_next_ranking(self, ranked):
        lost = ranked.studio.order()[-2:]
        ranked.server.broken = set(lost)
        ranked.rank(incomplete=True)
        for task in [task for task in ranked.studio.order() if task not in lost][4:]:
            ranked.studio.annotate(task, "cat")
        ranked.publish()
        assert ranked.rank().kept == 2
        ranked.check_whole(ranked.version)
        assert ranked.studio.order()[-2:] == lost
        for task in ranked.studio.order()[:-2]:
            ranked.studio.annotate(task, "cat")
        ranked.publish()
        assert "2 tasks wait in their order; 2 images cannot be scored" in ranked.rank().describe()
        assert ranked.studio.order() == lost

    def test_many_that_could_not_be_scored_at_first_are_ranked_with_all_others_in_the_end(self, rig):
        """There was no ranking to lose; placed one by one they would stand out of the order."""
        rig.server.away = set(range(6, TASKS + 1))
        assert (rig.rank().tasks, len(rig.studio.order())) == (5, 5)
        rig.server.away = set()
        assert rig.rank().ranking == f"{rig.version}.r2"
        rig.check_whole(f"{rig.version}.r2")
        told = meta_of(rig)
        assert [told[task]["rank"] for task in rig.studio.order()] == list(range(1, TASKS + 1))

    def test_a_plan_that_was_begun_is_brought_to_its_end_without_the_images(self, ranked, monkeypatch):
        ranked.begin(monkeypatch)
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
        shutil.rmtree(ranked.repository.folder / ranked.former)
        ranked.server.away = {ranked.studio.order()[0]}
        assert ranked.rank().kept == 1
        ranked.check_whole(ranked.version)

    def test_reasons_are_told_in_groups(self, rig, caplog):
        for number in range(1, 5):
            rig.studio.tasks[number]["data"] = {"image": f"http://images/{number}.png"}
        rig.server.away, rig.server.broken = {1, 2, 3, 4}, {7}
        with caplog.at_level(logging.INFO):
            rig.rank()
        assert "5 of 30 images cannot be scored: 4, such as task 1: http://images/1.png cannot be" in caplog.text
        assert "| 1, such as task 7: no such file" in caplog.text
