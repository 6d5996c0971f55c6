"""A Label Studio project for image classification: create, upload, annotate, and read tasks in order, over the API."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import PurePosixPath
from typing import Any, Self
from xml.sax.saxutils import quoteattr

from contract.label_studio import LabelStudioClient

_FILES_PER_UPLOAD = 100  # Label Studio's limit for one request
_TASKS_PER_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Prediction:
    """A prediction as Label Studio stores it."""

    model_version: str
    score: float
    label: str | None
    """None in the random holdout, whose predictions are hidden from annotators, and in the tab Look again."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task: the name of its uploaded file, the reference to it in Label Studio, and its state."""

    id: int
    file: str
    reference: str
    labelled: bool
    predictions: tuple[Prediction, ...]


class Project:
    """A project and an API client of its Label Studio.

    Methods raise ConfigError if Label Studio does not answer or refuses.
    """

    def __init__(self, client: LabelStudioClient, id: int) -> None:
        self.client = client
        self.id = id

    @property
    def url(self) -> str:
        """Address of the project's Data Manager."""
        return f"{self.client.url}/projects/{self.id}/data"

    def tab(self, title: str) -> str:
        """Return the address of the tab with this title, or of the Data Manager if there is none."""
        number = self.tabs().get(title)
        return f"{self.url}?tab={number}" if number else self.url

    def tabs(self) -> dict[str, int]:
        """Return the ids of the Data Manager's tabs by title, from left to right."""
        tabs = self.client.get("/api/dm/views", project=self.id)
        return {tab["data"]["title"]: tab["id"] for tab in tabs if "title" in tab["data"]}

    def tasks_in(self, title: str) -> list[int]:
        """Return the ids of the tasks in a tab, in its order."""
        reply = self.client.get("/api/tasks/", view=self.tabs()[title], page_size=_TASKS_PER_PAGE)
        return [task["id"] for task in reply["tasks"]]

    @classmethod
    def create(cls, client: LabelStudioClient, *, title: str, labels: Sequence[str]) -> Self:
        """Create a project in which each image gets one of `labels`."""
        body = {"title": title, "label_config": label_config(labels)}
        return cls(client, client.post("/api/projects", body)["id"])

    def upload(self, files: Mapping[str, bytes]) -> None:
        """Upload files, given by name and content; each becomes a task."""
        items = list(files.items())
        for start in range(0, len(items), _FILES_PER_UPLOAD):
            self.client.upload(f"/api/projects/{self.id}/import", items[start : start + _FILES_PER_UPLOAD])

    def annotate(self, task_id: int, label: str) -> None:
        """Annotate a task."""
        self.client.post(f"/api/tasks/{task_id}/annotations/", {"result": [choice(label)], "lead_time": 1.0})

    def connect(self, url: str, *, title: str) -> None:
        """Connect the ML backend at `url`."""
        self.client.post("/api/ml/", {"project": self.id, "url": url, "title": title, "is_interactive": False})

    def settings(self) -> dict[str, Any]:
        """Return the project's fields in Label Studio's API."""
        settings: dict[str, Any] = self.client.get(f"/api/projects/{self.id}")
        return settings

    def tasks(self, *, ordering: str = "tasks:id") -> list[Task]:
        """Return all tasks in an order of the Data Manager, such as "tasks:predictions_score" for ascending scores."""
        query = json.dumps({"ordering": [ordering]})
        tasks: list[Task] = []
        for page in count(1):
            reply = self.client.get(
                "/api/tasks", project=self.id, fields="all", query=query, page=page, page_size=_TASKS_PER_PAGE
            )
            tasks += map(_task, reply["tasks"])
            if page * _TASKS_PER_PAGE >= reply["total"]:
                break
        return tasks

    def next_task_id(self) -> int:
        """Return the id of the task that the label stream serves next."""
        return int(self.client.get(f"/api/projects/{self.id}/next")["id"])


def label_config(labels: Sequence[str]) -> str:
    """Return the labelling config of a single choice of `labels` for the image `$image`."""
    choices = "".join(f"<Choice value={quoteattr(label)}/>" for label in labels)
    return (
        '<View><Image name="image" value="$image" zoom="true"/>'
        f'<Choices name="label" toName="image" choice="single" showInLine="true">{choices}</Choices></View>'
    )


def choice(label: str) -> dict[str, object]:
    """Return an annotation's region that chooses `label`."""
    return {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}


def _task(document: Mapping[str, Any]) -> Task:
    reference = document["data"]["image"]
    return Task(
        id=document["id"],
        # Label Studio prefixes the uploaded name with random characters and a hyphen.
        file=PurePosixPath(reference).name.partition("-")[2],
        reference=reference,
        labelled=document["total_annotations"] > 0,
        predictions=tuple(_prediction(prediction) for prediction in document["predictions"]),
    )


def _prediction(document: Mapping[str, Any]) -> Prediction:
    labels = [region["value"]["choices"][0] for region in document["result"] if "bald" in region["meta"]]
    return Prediction(document["model_version"], document["score"], labels[0] if labels else None)
