from trainer.watching.messages import describe_ranking, describe_stages, describe_training


def test_training_is_described_with_quality_and_bulk_confirmations():
    report = {"version": "v1", "labels": 40}
    assert describe_training(report) == "trained v1 on 40 labels"
    report |= {"confirmed": 12, "macro_f1": 0.713}
    assert describe_training(report) == "trained v1 on 40 labels (and 12 confirmed in bulk), macro-F1 0.71"


def test_ranking_is_described_by_its_tasks():
    assert describe_ranking({"tasks": 9, "strategy": "margin", "waiting": 9}) == "ranked 9 tasks by margin"
    assert describe_ranking({"tasks": 0, "waiting": 9}) == "nothing new to rank, 9 tasks wait in their order"
    assert describe_ranking({"tasks": 0, "waiting": 0}) == "no task is left to label"


def test_stages_of_a_round_are_summed_up():
    training, ranking = {"labels": 1.0, "fit": 2.25}, {"labels": 0.5, "import": 9.0, "clear": 30.0}
    line = describe_stages(training, ranking, seconds=47.5)
    assert line == "round 17.5 s: start 4.8, labels 1.5, fit 2.2, import 9.0; clear 30.0 s"
