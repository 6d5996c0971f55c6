"""`trainer rank` with a real Label Studio and a real server: complete rankings, also after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest

from contract.scores.holdout import is_held_out
from demo.label_studio import LabelStudio
from demo.pool import Pool
from demo.product import CHECKOUT, Server, Workplace, serving, train
from demo.project import Project
from tests.system.conftest import QUICK_TRAINING, import_pool
from trainer.labelstudio import connect
from trainer.labelstudio.webhooks import set_webhook_token
from trainer.ranking.names import next_name

LABELS = ("Nul·la", 'Eins 🐈 <&> "x"', "שתיים")
"""With characters that must be escaped, an emoji, and right-to-left text."""
LABELLED = 20
QUICKER = (*QUICK_TRAINING, "--epochs", "3", "--holdout-share", "0")
TIMEOUT_S = 240.0


def labelling_config(labels: tuple[str, ...]) -> str:
    """Return a config with two controls for an image: the model predicts the first, annotators label both."""
    choices = "".join(f"<Choice value={quoteattr(label)}/>" for label in labels)
    return (
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="digit" toName="image">{choices}</Choices>'
        '<Choices name="quality" toName="image"><Choice value="good"/><Choice value="bad"/></Choices></View>'
    )


class RankedProject:
    """A project with a version trained on it, and a server of that version."""

    def __init__(self, studio: LabelStudio, pool: Pool, folder: Path) -> None:
        self.client = studio.client()
        self.workplace = Workplace(folder / "models", folder / "cache", studio.url, studio.token)
        self.log = folder / "log"
        body = {"title": "Ränge", "label_config": labelling_config(LABELS)}
        self.project = Project(self.client, self.client.post("/api/projects", body)["id"])
        self.truth = {task: LABELS[int(digit)] for task, digit in import_pool(self.project, pool).truth.items()}
        for task in list(self.truth)[:LABELLED]:
            self.label(task)
        self.server: Server
        self.version = ""
        self.original_settings = self.settings()
        """Before the first ranking."""

    def settings(self) -> tuple[str, str]:
        """Return model version and sampling, which rankings change."""
        settings = self.project.settings()
        return settings["model_version"], settings["sampling"]

    def label(self, task: int, control: str = "digit", label: str | None = None) -> None:
        value = {"choices": [label or self.truth[task]]}
        region = {"from_name": control, "to_name": "image", "type": "choices", "value": value}
        self.client.post(f"/api/tasks/{task}/annotations/", {"result": [region]})

    def start(self, *options: str, command: str = "rank", project: Project | None = None) -> subprocess.Popen[str]:
        """Start `trainer rank`, or another command."""
        project_id = (project or self.project).id
        program = [sys.executable, "-m", "trainer", command, "--project", str(project_id), "--server", self.server.url]
        environment = {**os.environ, **self.workplace.environment}
        with self.log.open("w") as log:
            return subprocess.Popen(
                [*program, *options], cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Wait for a command to succeed, and return its summary."""
        out, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, self.log_text[-4000:]
        summary: dict[str, Any] = json.loads(out)
        return summary

    def rank(self, *options: str) -> dict[str, Any]:
        return self.finish(self.start(*options))

    @property
    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def predictions(self) -> list[dict[str, Any]]:
        predictions: list[dict[str, Any]] = self.client.get("/api/predictions/", project=self.project.id)
        return predictions

    def versions(self) -> set[str]:
        """Return the model versions of the project's predictions."""
        path = f"/api/projects/{self.project.id}/model-versions/"
        return {each["model_version"] for each in self.client.get(path, extended="true")["static"]}

    def unlabelled(self) -> list[int]:
        return [task.id for task in self.project.tasks() if not task.labelled]

    def unlabelled_by_score(self) -> list[int]:
        """Return the unlabelled tasks in the Data Manager's order."""
        query = json.dumps({"ordering": ["tasks:predictions_score"]})
        tasks = self.client.get("/api/tasks", project=self.project.id, query=query, page_size=100)["tasks"]
        return [task["id"] for task in tasks if not task["total_annotations"] and task["predictions_score"] is not None]

    def check_ranking(self, name: object, *, foreign: int = 0) -> None:
        """Check that the project sorts by this ranking, which is complete, and has none of earlier rankings."""
        assert self.settings() == (name, "Uncertainty sampling")
        predictions = self.predictions()
        counts = Counter(each["task"] for each in predictions if each["model_version"] == name)
        assert set(counts.values()) == {1}
        assert set(self.unlabelled()) <= set(counts)
        others = Counter(each["model_version"] for each in predictions if each["model_version"] != name)
        assert others == Counter({"yolo": foreign} if foreign else {})
        assert set(self.unlabelled_by_score()) == set(self.unlabelled())

    def remove(self, version: str) -> None:
        """Delete all predictions of a version."""
        self.client.send("DELETE", f"/api/projects/{self.project.id}/model-versions/", body={"model_version": version})


@pytest.fixture(scope="module")
def ranked(studio: LabelStudio, digits: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankedProject]:
    """A project, a server and a version for all tests of this module."""
    folder = tmp_path_factory.mktemp("ranked")
    ranked = RankedProject(studio, digits, folder)
    server = serving(
        ranked.workplace,
        log=folder / "server.log",
        settings={"LABELNEXT_POLL_S": "0.2"},
    )
    with server as ranked.server:
        ranked.version = train(ranked.workplace, ranked.project.id, QUICKER)["version"]
        ranked.server.wait_for(ranked.version)
        yield ranked


@pytest.fixture
def foreign(ranked: RankedProject) -> Iterator[int]:
    """The number of predictions of another backend, which are imported before the test."""
    body = [{"task": task, "model_version": "yolo", "score": 0.5, "result": []} for task in ranked.truth]
    ranked.client.post(f"/api/projects/{ranked.project.id}/import/predictions", body)
    yield len(body)
    ranked.remove("yolo")


def test_label_studio_serves_in_the_order_of_the_ranking(ranked: RankedProject) -> None:
    """In the Data Manager and the label stream. The details of each prediction are in its region."""
    summary = ranked.rank("--holdout-share", "0.2", "--batch-size", "10")
    ranked.check_ranking(ranked.version)
    assert summary["tasks"] == summary["imported"] == len(ranked.truth) - LABELLED
    by_task = {each["task"]: each for each in ranked.predictions()}
    ranks = []
    order = ranked.unlabelled_by_score()
    held_out = is_held_out(ranked.project.id, np.array(order), 0.2)
    assert held_out.any()
    for task, is_random in zip(order, held_out, strict=True):
        if is_random:  # its prediction must be hidden
            assert by_task[task]["result"] == []
            continue
        [region] = by_task[task]["result"]
        assert region["from_name"] == "digit"
        assert region["value"]["choices"][0] in LABELS
        assert {"bald", "entropy", "probability", "strategy", "reason", "model_version"} <= region["meta"].keys()
        ranks.append(region["meta"]["rank"])
    assert ranks == (np.flatnonzero(~held_out) + 1).tolist()
    record = json.loads((ranked.workplace.models / "default" / "rankings" / f"{ranked.project.id}.json").read_text())
    assert len(record["most_uncertain"]) == 12
    for task in order[:3]:
        assert ranked.project.next_task_id() == task
        ranked.label(task)  # Label Studio serves the same task again until it is labelled


def test_a_project_with_other_labels_is_refused(ranked: RankedProject) -> None:
    """Label Studio and the trainer show both lists of labels; the project does not change."""
    project = Project.create(ranked.client, title="Cars", labels=("car", "bus"))
    ranked.client.post(f"/api/projects/{project.id}/import", [{"image": "http://127.0.0.1:9/x.png"}])
    before = project.settings()
    reason = "its labelling config has others (label: car, bus)"
    backend = {"project": project.id, "url": ranked.server.url, "title": "model"}
    refusal = str(json.loads(ranked.client.send("POST", "/api/ml/", body=backend, accepted=(400,))))
    assert "Eins" in refusal  # Label Studio reads the status line, which is ASCII
    assert reason in refusal
    process = ranked.start(project=project)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 3
    assert LABELS[0] in ranked.log_text
    assert reason in ranked.log_text
    after = project.settings()
    assert all(after[name] == before[name] for name in ("model_version", "sampling"))


def test_tasks_labelled_or_deleted_during_scoring_are_skipped(ranked: RankedProject, foreign: int) -> None:
    """Predictions of another backend are kept."""
    process = ranked.start("--force", "--strategy", "balanced-bald-margin")
    labelled, labelled_elsewhere, deleted = ranked.unlabelled_by_score()[:3]
    ranked.label(labelled)
    ranked.label(labelled_elsewhere, "quality", "good")
    ranked.label(next(iter(ranked.truth)))
    ranked.client.send("DELETE", f"/api/tasks/{deleted}/")
    del ranked.truth[deleted]
    ranked.check_ranking(ranked.finish(process)["ranking"], foreign=foreign - 1)


def test_release_restores_the_project(ranked: RankedProject, foreign: int) -> None:
    """Labels and other predictions are kept. A second release changes nothing, and the project can be ranked again."""
    ranked.rank()
    hook = {"project": ranked.project.id, "url": f"{ranked.server.url}/webhook", "headers": {"X-Team": "a"}}
    hook_id = ranked.client.post("/api/webhooks/", hook)["id"]
    client = connect(ranked.workplace.label_studio_url, ranked.workplace.token, ranked.project.id)
    assert set_webhook_token(client, [ranked.server.url], "secret") == 1
    labelled = len(ranked.truth) - len(ranked.unlabelled())
    for has_predictions in (True, False):
        released = ranked.finish(ranked.start(command="release"))
        assert bool(released["predictions"]) is has_predictions
        assert ranked.settings() == ranked.original_settings
        assert Counter(each["model_version"] for each in ranked.predictions()) == {"yolo": foreign}
        assert ranked.client.get(f"/api/webhooks/{hook_id}/")["headers"] == {"X-Team": "a"}
        assert len(ranked.truth) - len(ranked.unlabelled()) == labelled
    ranked.client.send("DELETE", f"/api/webhooks/{hook_id}/")
    ranked.rank()
    ranked.check_ranking(ranked.version, foreign=foreign)


def test_the_next_run_completes_a_ranking_killed_during_the_import(ranked: RankedProject, foreign: int) -> None:
    """Until it is complete the old ranking is shown, and predictions of another backend are kept.

    Label Studio finishes the import. Unit tests cover kills at other moments.
    """
    ranked.rank()
    before = ranked.settings()[0]
    for _ in range(5):  # the process may end before it is killed
        name = next_name(ranked.version, ranked.versions())
        process = ranked.start("--force")
        while process.poll() is None and not any((ranked.workplace.cache / "rank").rglob("import.json")):
            time.sleep(0.005)
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            break
        before = ranked.settings()[0]
    assert process.returncode == -signal.SIGKILL
    shown = ranked.settings()[0]
    assert shown in {before, name}
    assert any(each["model_version"] == shown for each in ranked.predictions())
    planned = any((ranked.workplace.cache / "rank").rglob("plan.json"))
    assert ranked.rank(*([] if planned else ["--force"]))["ranking"] == name
    ranked.check_ranking(name, foreign=foreign)


def test_the_first_version_replaces_a_cold_start(ranked: RankedProject, tmp_path: Path) -> None:
    """Without a version, the order covers the pool, by features of the pretrained network."""
    cold = Workplace(tmp_path / "models", tmp_path / "cache", ranked.workplace.label_studio_url, ranked.workplace.token)
    warm, ranked.workplace = ranked.workplace, cold
    try:
        for name in ranked.versions():
            ranked.remove(name)
        summary = ranked.rank("--weights", "none", "--backbone", "vgg11", "--image-size", "32")
        assert summary["ranking"] == "cold-start-default"
        ranked.check_ranking("cold-start-default")
    finally:
        ranked.workplace = warm
    ranked.rank()
    ranked.check_ranking(ranked.version)
