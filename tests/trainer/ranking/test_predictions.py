import numpy as np
import pytest

from contract.scores.holdout import holdout_order, is_held_out
from contract.scores.sure import Sure
from trainer.ranking.predictions import Plan, PlannedPrediction, load_plan, place_later, save_plan
from trainer.scoring.scores import Score

REGION = {"from_name": "label", "value": {"choices": ["Kätzchen 🐈\n"]}, "meta": {"rank": 1}}
PLAN = Plan(
    "20261123T050102123Z-0a1b2c.r2",
    "balanced-bald-margin",
    near_duplicates=1,
    unscored=(3, 11),
    kept=1,
    items=(
        PlannedPrediction(7, 0.1 + 0.2, [REGION], "the passes disagree", bald=0.123, held_out=False),
        PlannedPrediction(3, 0.9, [], "random sample", bald=None, held_out=True, kept=True),
    ),
    sure=Sure("20261123T050102123Z-0a1b2c.r2", 0.98, {"cat": 1}, 0.5, 200, 0, 0.98, tasks={7: 0}),
)


def test_a_saved_plan_is_loaded_unchanged(tmp_path):
    """Scores are equal to the last bit, because predictions are recognised by them."""
    save_plan(tmp_path / "new" / "plan.json", PLAN)
    assert load_plan(tmp_path / "new" / "plan.json") == PLAN
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plan.json"]


@pytest.mark.parametrize("has_ranked", [True, False])
def test_later_holdout_tasks_are_placed_by_their_draw(has_ranked):
    """Between the ranked tasks of the holdout."""
    tasks = np.arange(2000)
    holdout = tasks[is_held_out(5, tasks, 0.3)]
    holdout = holdout[np.argsort(holdout_order(5, holdout))]
    in_time, later = (holdout[::2] if has_ranked else holdout[:0]).tolist(), holdout[1::2]
    ranked = dict(zip(in_time, np.linspace(0.4, 0.8, len(in_time)).tolist(), strict=True))
    scores = [Score(int(task), [], np.array([0.5, 0.5]), 0.1, 0.2, np.zeros(4, np.float32)) for task in later]
    placed = {
        each.task: each
        for each in place_later(scores, ranked, unscored=(), project=5, holdout_share=0.3, multiple=False)
    }
    assert all(each.held_out and each.result == [] for each in placed.values())
    values = [placed[task].score for task in later.tolist()]
    assert values == sorted(values)
    for before, value in zip(in_time, values, strict=False):
        assert ranked[before] <= value <= 0.8
    if not in_time:  # uniform
        assert abs(np.mean(values) - 0.5) < 0.05


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_plan_is_ignored(tmp_path, share):
    save_plan(tmp_path / "plan.json", PLAN)
    content = (tmp_path / "plan.json").read_bytes()
    (tmp_path / "plan.json").write_bytes(content[: int(share * len(content))])
    assert load_plan(tmp_path / "plan.json") is None
