from contextlib import suppress

from trainer.stages import Stages, collecting, stage


def test_a_stage_takes_what_its_blocks_take_together_but_for_stages_within_it():
    """So all together are never more than the time that has passed. One that fails counts as well."""
    now = [100.0]
    stages = Stages(clock=lambda: now[0])
    for seconds in (1.0, 0.5):
        with stages.measure("labels"):
            now[0] += seconds
        now[0] += 10
    with suppress(ZeroDivisionError), stages.measure("outer"):
        now[0] += 1
        with stages.measure("inner"):
            now[0] += 4
        now[0] += 2
        raise ZeroDivisionError
    assert list(stages.to_json().items()) == [("labels", 1.5), ("outer", 3), ("inner", 4)]


def test_stages_are_counted_for_whoever_collects():
    @stage("fit")
    def fit():
        with stage("step"):
            return 7

    assert fit() == 7
    with collecting() as outer:
        fit()
        with collecting() as inner:
            pass
    assert list(outer.to_json()) == ["fit", "step"]
    assert inner.to_json() == {}
    with stage("late"):
        assert list(outer.to_json()) == ["fit", "step"]
