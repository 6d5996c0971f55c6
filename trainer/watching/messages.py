"""Texts for the log of a watch, from the reports of the commands `run` and `rank`."""

from collections.abc import Mapping
from typing import Any

from trainer.stages import CLEAR


def describe_training(report: Mapping[str, Any]) -> str:
    """Return version, number of labels and quality in words."""
    macro_f1, confirmed = report.get("macro_f1"), report.get("confirmed")
    quality = f", macro-F1 {macro_f1:.2f}" if isinstance(macro_f1, float) else ""
    excluded = f" (and {confirmed} confirmed in bulk)" if confirmed else ""
    return f"trained {report.get('version')} on {report.get('labels')} labels{excluded}{quality}"


def describe_ranking(report: Mapping[str, Any]) -> str:
    """Return the number of ranked tasks in words."""
    if tasks := report.get("tasks"):
        return f"ranked {tasks} tasks by {report.get('strategy')}"
    waiting = report.get("waiting")
    return f"nothing new to rank, {waiting} tasks wait in their order" if waiting else "no task is left to label"


def describe_stages(training: Mapping[str, float], ranking: Mapping[str, float], *, seconds: float) -> str:
    """Return the duration of a round until its order was in place, and the seconds of each stage.

    "start" is the time in no stage, such as the start of the commands. What follows the order is not included in the
    duration.
    """
    stages = {stage: training.get(stage, 0.0) + ranking.get(stage, 0.0) for stage in {**training, **ranking}}
    clear_s = stages.pop(CLEAR, 0.0)
    start_s = max(0.0, seconds - clear_s - sum(stages.values()))
    listed = ", ".join(f"{stage} {stage_s:.1f}" for stage, stage_s in {"start": start_s, **stages}.items())
    return f"round {seconds - clear_s:.1f} s: {listed}" + (f"; {CLEAR} {clear_s:.1f} s" if clear_s else "")
