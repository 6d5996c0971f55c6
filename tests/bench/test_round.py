from bench.round import Round
from trainer.watching.messages import describe_stages


def test_parses_durations_from_the_log_of_the_watch():
    """Lines about a ranking alone are ignored."""
    training, ranking = {"labels": 1.0, "fit": 2.5}, {"score": 4.5, "clear": 30.0}
    text = describe_stages(training, ranking, seconds=47.5)
    stages = {"start": 9.5, "labels": 1.0, "fit": 2.5, "score": 4.5}
    assert Round.parse(f"50 new labels: trained v1 on 550 labels; ranked 9 tasks; {text}") == Round(17.5, stages, 30.0)
    text = describe_stages(training, {"score": 4.5}, seconds=17.5)
    assert Round.parse(f"50 new labels: trained v1; {text}") == Round(17.5, stages, 0.0)
    for line in ("", "watching project 5: a round after 20 new labels", "x: ranked 9 tasks; 12 s"):
        assert Round.parse(line) is None
