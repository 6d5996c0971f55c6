import pytest

from contract.scores.sure import Sure
from trainer.ranking.predictions import Plan, Planned, load_plan, save_plan

REGION = {"from_name": "label", "value": {"choices": ["Kätzchen 🐈\n"]}, "meta": {"rank": 1}}
PLAN = Plan(
    "20261123T050102123Z-0a1b2c.r2",
    "balanced-bald-margin",
    near_duplicates=1,
    unscored=(3, 11),
    kept=1,
    items=(
        Planned(7, 0.1 + 0.2, [REGION], "the passes disagree", bald=0.123, held_out=False, sure="certain"),
        Planned(3, 0.9, [], "random sample", bald=None, held_out=True, kept=True),
    ),
    sure=Sure("20261123T050102123Z-0a1b2c.r2", 0.98, {"cat": 1}, 0.5, 200, 0, 0.98, tasks={7: 0}),
)


def test_a_plan_is_read_back_as_it_was_written(tmp_path):
    """To the last bit of each score, by which predictions are recognised."""
    save_plan(tmp_path / "new" / "plan.json", PLAN)
    assert load_plan(tmp_path / "new" / "plan.json") == PLAN
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plan.json"]


@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
def test_a_plan_that_was_cut_short_is_none(tmp_path, left):
    save_plan(tmp_path / "plan.json", PLAN)
    content = (tmp_path / "plan.json").read_bytes()
    (tmp_path / "plan.json").write_bytes(content[: int(left * len(content))])
    assert load_plan(tmp_path / "plan.json") is None
