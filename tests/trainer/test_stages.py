import pytest

from trainer.stages import Stages, collecting, stage


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_stage_takes_what_its_blocks_take_together(clock):
    """One that is entered twice counts twice, in the place where it first began."""
    stages = Stages(clock=clock)
    for name, seconds in (("labels", 1.0), ("fit", 2.0), ("labels", 0.5)):
        with stages.measure(name):
            clock.now += seconds
        clock.now += 10
    assert list(stages.to_json().items()) == [("labels", 1.5), ("fit", 2.0)]


def test_a_stage_within_another_counts_for_itself_alone(clock):
    """So that all of them together are never more than the time that has passed; one that fails counts as well."""
    stages = Stages(clock=clock)

    def fail():
        with stages.measure("outer"):
            clock.now += 1
            with stages.measure("inner"):
                clock.now += 4
            clock.now += 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert stages.to_json() == {"outer": 3, "inner": 4}


def test_stages_are_counted_for_whoever_collects():
    """Wherever they are measured below it, as blocks or as functions; nobody else's are."""

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
