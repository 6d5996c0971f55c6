"""Ranking a real Label Studio's project through a real server: whole, also if killed, and without harm to others."""

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
from tests.system.conftest import QUICK_TRAINING, fill
from trainer.labelstudio import connect
from trainer.labelstudio.webhooks import set_webhook_token
from trainer.ranking.names import next_name

LABELS = ("Nul·la", 'Eins 🐈 <&> "x"', "שתיים")
"""As people write them: what has to be escaped, what reads from right to left, and what is no letter."""
LABELLED = 20
QUICKER = (*QUICK_TRAINING, "--epochs", "3", "--holdout-share", "0")
PATIENCE_S = 240.0


def labelling_config(labels: tuple[str, ...]) -> str:
    """Two controls over one image: the model answers for the first, the other is for people."""
    choices = "".join(f"<Choice value={quoteattr(label)}/>" for label in labels)
    return (
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="digit" toName="image">{choices}</Choices>'
        '<Choices name="quality" toName="image"><Choice value="good"/><Choice value="bad"/></Choices></View>'
    )


class Ranked:
    """A project with a version trained on it and a server of that version."""

    def __init__(self, studio: LabelStudio, pool: Pool, folder: Path) -> None:
        self.client = studio.client()
        self.workplace = Workplace(folder / "models", folder / "cache", studio.url, studio.token)
        self.log = folder / "log"
        body = {"title": "Ränge", "label_config": labelling_config(LABELS)}
        self.project = Project(self.client, self.client.post("/api/projects", body)["id"])
        self.truth = {task: LABELS[int(digit)] for task, digit in fill(self.project, pool).truth.items()}
        for task in list(self.truth)[:LABELLED]:
            self.label(task)
        self.server: Server
        self.version = ""
        self.before = self.settings()
        """Before anything was ranked."""

    def settings(self) -> tuple[str, str]:
        """What a ranking changes of the project."""
        found = self.project.settings()
        return found["model_version"], found["sampling"]

    def label(self, task: int, control: str = "digit", label: str | None = None) -> None:
        value = {"choices": [label or self.truth[task]]}
        region = {"from_name": control, "to_name": "image", "type": "choices", "value": value}
        self.client.post(f"/api/tasks/{task}/annotations/", {"result": [region]})

    def start(self, *options: str, command: str = "rank", project: Project | None = None) -> subprocess.Popen[str]:
        """Begin a ranking, or another command of a project."""
        number = (project or self.project).id
        program = [sys.executable, "-m", "trainer", command, "--project", str(number), "--server", self.server.url]
        environment = {**os.environ, **self.workplace.environment}
        with self.log.open("w") as log:
            return subprocess.Popen(
                [*program, *options], cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Wait for a command that succeeds, and return its last line."""
        out, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, self.said[-4000:]
        summary: dict[str, Any] = json.loads(out)
        return summary

    def rank(self, *options: str) -> dict[str, Any]:
        return self.finish(self.start(*options))

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def predictions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get("/api/predictions/", project=self.project.id)
        return found

    def versions(self) -> set[str]:
        """Those that the project has predictions of."""
        path = f"/api/projects/{self.project.id}/model-versions/"
        return {each["model_version"] for each in self.client.get(path, extended="true")["static"]}

    def unlabelled(self) -> list[int]:
        return [task.id for task in self.project.tasks() if not task.labelled]

    def served(self) -> list[int]:
        """The unlabelled tasks in the Data Manager's order."""
        query = json.dumps({"ordering": ["tasks:predictions_score"]})
        tasks = self.client.get("/api/tasks", project=self.project.id, query=query, page_size=100)["tasks"]
        return [task["id"] for task in tasks if not task["total_annotations"] and task["predictions_score"] is not None]

    def check_whole(self, name: object, *, foreign: int = 0) -> None:
        """The project sorts by this ranking: one prediction of each unlabelled task, none of earlier rankings."""
        assert self.settings() == (name, "Uncertainty sampling")
        predictions = self.predictions()
        held = Counter(each["task"] for each in predictions if each["model_version"] == name)
        assert set(held.values()) == {1}
        assert set(self.unlabelled()) <= set(held)
        others = Counter(each["model_version"] for each in predictions if each["model_version"] != name)
        assert others == Counter({"yolo": foreign} if foreign else {})
        assert set(self.served()) == set(self.unlabelled())

    def remove(self, version: str) -> None:
        """Delete all predictions of a version."""
        self.client.send("DELETE", f"/api/projects/{self.project.id}/model-versions/", body={"model_version": version})


@pytest.fixture(scope="module")
def ranked(studio: LabelStudio, digits: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranked]:
    """One project, server and version for all tests here, each of which leaves them fit for the next."""
    folder = tmp_path_factory.mktemp("ranked")
    ranked = Ranked(studio, digits, folder)
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
def foreign(ranked: Ranked) -> Iterator[int]:
    """Predictions of somebody else's backend, and how many."""
    body = [{"task": task, "model_version": "yolo", "score": 0.5, "result": []} for task in ranked.truth]
    ranked.client.post(f"/api/projects/{ranked.project.id}/import/predictions", body)
    yield len(body)
    ranked.remove("yolo")


def test_label_studio_serves_in_the_order_of_the_ranking(ranked: Ranked) -> None:
    """From the first score to the label stream; what is told of each prediction lies on its region."""
    summary = ranked.rank("--holdout-share", "0.2", "--batch-size", "10")
    ranked.check_whole(ranked.version)
    assert summary["tasks"] == summary["imported"] == len(ranked.truth) - LABELLED
    by_task = {each["task"]: each for each in ranked.predictions()}
    ranks = []
    sampled = is_held_out(ranked.project.id, np.array(ranked.served()), 0.2)
    assert sampled.any()
    for task, by_chance in zip(ranked.served(), sampled, strict=True):
        if by_chance:  # Label Studio would tick it
            assert by_task[task]["result"] == []
            continue
        [region] = by_task[task]["result"]
        assert region["from_name"] == "digit"
        assert region["value"]["choices"][0] in LABELS
        assert {"bald", "entropy", "probability", "strategy", "reason", "model_version"} <= region["meta"].keys()
        ranks.append(region["meta"]["rank"])
    assert ranks == (np.flatnonzero(~sampled) + 1).tolist()
    record = json.loads((ranked.workplace.models / "default" / "rankings" / f"{ranked.project.id}.json").read_text())
    assert len(record["most_uncertain"]) == 12
    for task in ranked.served()[:3]:
        assert ranked.project.next_task_id() == task
        ranked.label(task)  # until then Label Studio keeps it for whoever it was served to


def test_a_project_of_other_labels_is_refused_and_label_studio_names_both_lists(ranked: Ranked) -> None:
    """When the model is connected, and by the trainer; the project stays as it is."""
    project = Project.create(ranked.client, title="Cars", labels=("car", "bus"))
    ranked.client.post(f"/api/projects/{project.id}/import", [{"image": "http://127.0.0.1:9/x.png"}])
    before = project.settings()
    reason = "its labelling config has others (label: car, bus)"
    backend = {"project": project.id, "url": ranked.server.url, "title": "model"}
    refusal = str(json.loads(ranked.client.send("POST", "/api/ml/", body=backend, accepted=(400,))))
    assert "Eins" in refusal  # Label Studio has it from a status line, which is ASCII
    assert reason in refusal
    process = ranked.start(project=project)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3
    assert LABELS[0] in ranked.said
    assert reason in ranked.said
    assert [project.settings()[name] for name in ("model_version", "sampling")] == [
        before[name] for name in ("model_version", "sampling")
    ]


def test_labels_that_come_and_tasks_that_go_while_images_are_scored(ranked: Ranked, foreign: int) -> None:
    """They are left alone, whoever labelled what of them, and so is what another backend predicted."""
    process = ranked.start("--force", "--strategy", "balanced-bald-margin")
    labelled, by_another_control, gone = ranked.served()[:3]
    ranked.label(labelled)
    ranked.label(by_another_control, "quality", "good")
    ranked.label(next(iter(ranked.truth)))
    ranked.client.send("DELETE", f"/api/tasks/{gone}/")
    del ranked.truth[gone]
    ranked.check_whole(ranked.finish(process)["ranking"], foreign=foreign - 1)


def test_released_a_project_is_as_it_was_before_any_ranking(ranked: Ranked, foreign: int) -> None:
    """Predictions of others and labels stay; released again nothing changes, and ranked again all is as ever."""
    ranked.rank()
    hook = {"project": ranked.project.id, "url": f"{ranked.server.url}/webhook", "headers": {"X-Team": "a"}}
    number = ranked.client.post("/api/webhooks/", hook)["id"]
    client = connect(ranked.workplace.label_studio_url, ranked.workplace.token, ranked.project.id)
    assert set_webhook_token(client, [ranked.server.url], "secret") == 1
    labelled = len(ranked.truth) - len(ranked.unlabelled())
    for round_ in range(2):
        released = ranked.finish(ranked.start(command="release"))
        assert bool(released["predictions"]) == (round_ == 0)
        assert ranked.settings() == ranked.before
        assert Counter(each["model_version"] for each in ranked.predictions()) == {"yolo": foreign}
        assert ranked.client.get(f"/api/webhooks/{number}/")["headers"] == {"X-Team": "a"}
        assert len(ranked.truth) - len(ranked.unlabelled()) == labelled
    ranked.client.send("DELETE", f"/api/webhooks/{number}/")
    ranked.rank()
    ranked.check_whole(ranked.version, foreign=foreign)


def test_killed_while_label_studio_imports_the_next_run_makes_it_whole(ranked: Ranked, foreign: int) -> None:
    """Until it is whole the old ranking is shown; what another backend predicted stays.

    Label Studio finishes what it was asked. Of every other moment the unit tests tell.
    """
    ranked.rank()
    before = ranked.settings()[0]
    for _ in range(5):  # it may end before it is killed
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
    ranked.check_whole(name, foreign=foreign)


def test_before_there_is_a_version_the_pool_is_covered(ranked: Ranked, tmp_path: Path) -> None:
    """With the network's own eyes; the first version then takes over, and what was there before goes."""
    cold = Workplace(tmp_path / "models", tmp_path / "cache", ranked.workplace.label_studio_url, ranked.workplace.token)
    warm, ranked.workplace = ranked.workplace, cold
    try:
        for name in ranked.versions():
            ranked.remove(name)
        summary = ranked.rank("--weights", "none", "--backbone", "vgg11", "--image-size", "32")
        assert summary["ranking"] == "cold-start-default"
        ranked.check_whole("cold-start-default")
    finally:
        ranked.workplace = warm
    ranked.rank()
    ranked.check_whole(ranked.version)
