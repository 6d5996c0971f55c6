from contextlib import suppress
from types import SimpleNamespace

from trainer import stages
from trainer.stages import collect_stages, stage


def test_durations_exclude_nested_stages(monkeypatch):
    """So that the sum of all stages is at most the elapsed time. Blocks that raise count too."""
    now = [100.0]
    monkeypatch.setattr(stages, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with collect_stages() as seconds:
        for duration in (1.0, 0.504):
            with stage("labels"):
                now[0] += duration
            now[0] += 10
        with suppress(ZeroDivisionError), stage("outer"):
            now[0] += 1
            with stage("inner"):
                now[0] += 4
            now[0] += 2
            raise ZeroDivisionError
    assert list(seconds.items()) == [("labels", 1.5), ("outer", 3), ("inner", 4)]


def test_durations_are_collected_by_the_innermost_collector():
    @stage("fit")
    def fit():
        with stage("step"):
            return 7

    assert fit() == 7
    with collect_stages() as outer:
        fit()
        with collect_stages() as inner:
            pass
    with stage("late"):
        assert (list(outer), inner) == (["fit", "step"], {})
