from hypothesis import given
from hypothesis import strategies as st

from trainer.ranking.predictions import Plan, Planned, load_plan, save_plan

REGION = {"from_name": "label", "value": {"choices": ["Kätzchen 🐈\n"]}, "meta": {"rank": 1}}
PLAN = Plan(
    "20261123T050102123Z-0a1b2c.r2",
    "balanced-bald-margin",
    near_duplicates=1,
    unscored=(3, 11),
    kept=1,
    items=(
        Planned(7, 0.1 + 0.2, [REGION], "the passes disagree", bald=0.123, held_out=False),
        Planned(3, 0.9, [], "random sample", bald=None, held_out=True, kept=True),
    ),
)


def test_a_plan_is_read_back_as_it_was_written(tmp_path):
    """To the last bit of each score, by which predictions are recognised."""
    save_plan(tmp_path / "new" / "plan.json", PLAN)
    assert load_plan(tmp_path / "new" / "plan.json") == PLAN
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plan.json"]


@given(st.data())
def test_a_plan_that_was_cut_short_is_none(tmp_path_factory, data):
    """Half a ranking is not to be taken for a whole one."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    save_plan(path, PLAN)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])
    assert load_plan(path) is None
