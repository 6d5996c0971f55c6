"""Ranking a real Label Studio's project through a real server: whole, also if killed, and without harm to others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest

from contract.label_studio import LabelStudioClient
from contract.scores.holdout import is_held_out
from demo.label_studio import LabelStudio
from demo.pool import Pool
from demo.processes import free_port
from demo.product import CHECKOUT, Server, Workplace, serving, train
from demo.project import Project
from tests.system.conftest import QUICK_TRAINING, python_of
from trainer.labelstudio import connect, set_webhook_token
from trainer.ranking.names import next_name

LABELS = ("Nul·la", 'Eins 🐈 <&> "x"', "שתיים")
"""As people write them: what has to be escaped, what reads from right to left, and what is no letter."""
LABELLED = 20
QUICKER = (*QUICK_TRAINING, "--epochs", "3", "--holdout-share", "0")


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

    def __init__(self, studio: LabelStudio, workplace: Workplace, pool: Pool) -> None:
        self.session: LabelStudioClient = studio.client()
        self.workplace = workplace
        body = {"title": "Ränge", "label_config": labelling_config(LABELS)}
        self.project = Project(self.session, self.session.post("/api/projects", body)["id"])
        self.project.upload({image.name: image.path.read_bytes() for image in pool.images})
        tasks = self.session.get("/api/tasks", project=self.project.id, page_size=100)["tasks"]
        self.ids = {task["data"]["image"].partition("-")[2]: task["id"] for task in tasks}
        self.truth = {self.ids[image.name]: LABELS[int(image.label)] for image in pool.images}
        self.tasks = [self.ids[image.name] for image in pool.images]
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
        self.session.post(f"/api/tasks/{task}/annotations/", {"result": [region]})

    def train(self) -> None:
        """Publish a version, and wait until it is served."""
        self.version = train(self.workplace, self.project.id, QUICKER).version
        self.server.wait_for(self.version)

    def start(self, *options: str, command: str = "rank") -> subprocess.Popen[str]:
        """Begin a ranking, or another command of a project."""
        program = [sys.executable, "-m", "trainer", command, "--project", str(self.project.id)]
        return subprocess.Popen(
            [*program, "--server", self.server.url, *options],
            cwd=CHECKOUT,
            env={**os.environ, **self.workplace.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def rank(self, *options: str) -> dict[str, object]:
        """Rank, and return the last line."""
        process = self.start(*options)
        out, err = process.communicate()
        assert process.returncode == 0, err
        summary: dict[str, object] = json.loads(out)
        return summary

    def predictions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.session.get("/api/predictions/", project=self.project.id)
        return found

    def unlabelled(self) -> list[int]:
        tasks = self.session.get("/api/tasks", project=self.project.id, page_size=100)["tasks"]
        return [task["id"] for task in tasks if not task["total_annotations"]]

    def served(self) -> list[int]:
        """The unlabelled tasks in the Data Manager's order."""
        query = json.dumps({"ordering": ["tasks:predictions_score"]})
        tasks = self.session.get("/api/tasks", project=self.project.id, query=query, page_size=100)["tasks"]
        return [task["id"] for task in tasks if not task["total_annotations"] and task["predictions_score"] is not None]

    def check_whole(self, name: str, *, foreign: int = 0) -> None:
        """The project sorts by this ranking: one prediction of each unlabelled task, none of earlier rankings."""
        settings = self.project.settings()
        assert (settings["model_version"], settings["sampling"]) == (name, "Uncertainty sampling")
        held = Counter(each["task"] for each in self.predictions() if each["model_version"] == name)
        assert set(held.values()) == {1}
        assert set(self.unlabelled()) <= set(held)
        others = Counter(each["model_version"] for each in self.predictions() if each["model_version"] != name)
        assert others == Counter({"yolo": foreign} if foreign else {})
        assert set(self.served()) == set(self.unlabelled())

    def remove(self, version: str) -> None:
        """Delete all predictions of a version."""
        path = f"/api/projects/{self.project.id}/model-versions/"
        self.session.delete(path, {"model_version": version})


@pytest.fixture(scope="module")
def ranked(studio: LabelStudio, digits: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranked]:
    """One project, server and first version for all tests here, each of which leaves them fit for the next."""
    folder = tmp_path_factory.mktemp("ranked")
    workplace = Workplace(folder / "models", folder / "cache", studio.url, studio.token)
    place = Ranked(studio, workplace, digits)
    for task in place.tasks[:LABELLED]:
        place.label(task)
    settings = {"LABELNEXT_POLL_S": "0.2"}
    server = serving(
        workplace, python=python_of("server"), port=free_port(), log=folder / "server.log", settings=settings
    )
    with server as place.server:
        place.train()
        yield place


@pytest.fixture
def foreign(ranked: Ranked) -> Iterator[int]:
    """Predictions of somebody else's backend, and how many."""
    body = [{"task": task, "model_version": "yolo", "score": 0.5, "result": []} for task in ranked.tasks]
    ranked.session.post(f"/api/projects/{ranked.project.id}/import/predictions", body)
    yield len(body)
    ranked.remove("yolo")


def test_label_studio_serves_in_the_order_of_the_ranking(ranked: Ranked) -> None:
    """From the first score to the label stream; what is told of each prediction lies on its region."""
    summary = ranked.rank("--holdout-share", "0.2", "--batch-size", "10")
    ranked.check_whole(ranked.version)
    assert summary["tasks"] == summary["imported"] == len(ranked.tasks) - LABELLED
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


def test_labels_that_come_and_tasks_that_go_while_images_are_scored(ranked: Ranked, foreign: int) -> None:
    """They are left alone, and so is what another backend predicted."""
    process = ranked.start("--force")
    labelled, gone = ranked.served()[:2]
    ranked.label(labelled)
    ranked.session.delete(f"/api/tasks/{gone}/")
    ranked.tasks.remove(gone)
    out, err = process.communicate()
    assert process.returncode == 0, err
    ranked.check_whole(json.loads(out)["ranking"], foreign=foreign - 1)


def test_released_a_project_is_as_it_was_before_any_ranking(ranked: Ranked, foreign: int) -> None:
    """Predictions of others and labels stay; released again nothing changes, and ranked again all is as ever."""
    ranked.rank()
    hook = {"project": ranked.project.id, "url": f"{ranked.server.url}/webhook", "headers": {"X-Team": "a"}}
    number = ranked.session.post("/api/webhooks/", hook)["id"]
    client = connect(ranked.workplace.label_studio_url, ranked.workplace.token)
    assert set_webhook_token(client, ranked.project.id, [ranked.server.url], "secret") == 1
    labelled = len(ranked.tasks) - len(ranked.unlabelled())
    for round_ in range(2):
        process = ranked.start(command="release")
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert bool(json.loads(out)["predictions"]) == (round_ == 0)
        assert ranked.settings() == ranked.before
        assert Counter(each["model_version"] for each in ranked.predictions()) == {"yolo": foreign}
        assert ranked.session.get(f"/api/webhooks/{number}/")["headers"] == {"X-Team": "a"}
        assert len(ranked.tasks) - len(ranked.unlabelled()) == labelled
    ranked.session.delete(f"/api/webhooks/{number}/")
    ranked.rank()
    ranked.check_whole(ranked.version, foreign=foreign)


@pytest.mark.parametrize("moment", ["scoring", "importing", "imported", "switched"])
def test_killed_at_any_time_the_next_run_makes_it_whole(ranked: Ranked, foreign: int, moment: str) -> None:
    """Until it is whole the old ranking is shown; what another backend predicted stays."""
    ranked.rank()
    before = ranked.project.settings()["model_version"]
    name = next_name(ranked.version, names(ranked))
    kept = ranked.workplace.cache / "rank"
    reached: dict[str, Callable[[], bool]] = {
        "scoring": lambda: any(kept.rglob("*.scores")),
        "importing": lambda: any(kept.rglob("import.json")),
        "imported": lambda: name in names(ranked),
        "switched": lambda: ranked.project.settings()["model_version"] == name,
    }
    process = ranked.start("--force")
    while process.poll() is None and not reached[moment]():
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    shown = ranked.project.settings()["model_version"]
    assert shown in {before, name}
    assert any(each["model_version"] == shown for each in ranked.predictions())
    planned = any(kept.rglob("plan.jsonl"))
    assert ranked.rank(*([] if planned else ["--force"]))["ranking"] == name
    ranked.check_whole(name, foreign=foreign)


def names(ranked: Ranked) -> set[str]:
    path = f"/api/projects/{ranked.project.id}/model-versions/"
    return {each["model_version"] for each in ranked.session.get(path, extended="true")["static"]}


def test_a_second_annotator_and_labels_of_another_control_change_nothing(ranked: Ranked) -> None:
    """What is counted are labels of the control that the version answers for."""
    for task in ranked.unlabelled()[:2]:
        ranked.label(task, "quality", "good")
    ranked.label(ranked.tasks[0])
    ranked.check_whole(str(ranked.rank("--force", "--strategy", "balanced-margin")["ranking"]))


def test_a_labelling_config_that_changed_since_the_training(ranked: Ranked) -> None:
    """Images predicted as a label that it lost keep their place in the order, and show no label."""
    lost = Counter(shown(ranked)).most_common(1)[0][0]
    labels = tuple("neu" if label == lost else label for label in (*LABELS, "Drei"))
    ranked.project.change(label_config=labelling_config(labels))
    ranked.check_whole(str(ranked.rank("--force")["ranking"]))
    assert lost not in shown(ranked)
    assert any(not each["result"] for each in ranked.predictions())


def shown(ranked: Ranked) -> list[str]:
    """The labels that are predicted."""
    regions = [region for each in ranked.predictions() for region in each["result"]]
    return [choice for region in regions for choice in region["value"]["choices"]]


def test_before_there_is_a_version_the_pool_is_covered(ranked: Ranked, tmp_path: Path) -> None:
    """With the network's own eyes; the first version then takes over, and what was there before goes."""
    cold = Workplace(tmp_path / "models", tmp_path / "cache", ranked.workplace.label_studio_url, ranked.workplace.token)
    warm, ranked.workplace = ranked.workplace, cold
    try:
        for name in names(ranked):
            ranked.remove(name)
        summary = ranked.rank("--weights", "none", "--arch", "vgg11")
        assert summary["ranking"] == "cold-start-default"
        ranked.check_whole("cold-start-default")
    finally:
        ranked.workplace = warm
    ranked.rank()
    ranked.check_whole(ranked.version)
