"""A Label Studio project of images to classify: made, filled, labelled, and read in the Data Manager's order.

Knows Label Studio's endpoints; knows nothing of the product but that it is a machine learning backend with a URL.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import PurePosixPath
from typing import Any, Self
from xml.sax.saxutils import quoteattr

from contract.label_studio import LabelStudioClient

_FILES_PER_UPLOAD = 100  # Label Studio refuses more in one form
_TASKS_PER_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Prediction:
    """What Label Studio stored of one prediction."""

    model_version: str
    score: float
    label: str | None
    """None of the random sample, in which nobody is told what is predicted, and of labels to be looked at again."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task: the file name that was uploaded, where Label Studio serves it, and what is known of it."""

    id: int
    file: str
    reference: str
    labelled: bool
    predictions: tuple[Prediction, ...]


class Project:
    """One project, as its owner acts on it by a client of the Label Studio that holds it."""

    def __init__(self, client: LabelStudioClient, id: int) -> None:
        self.client = client
        self.id = id

    @property
    def url(self) -> str:
        """Where a person opens the project."""
        return f"{self.client.url}/projects/{self.id}/data"

    def tab(self, title: str) -> str:
        """Return where a person opens a tab of the Data Manager, or the project where it has none of that title."""
        number = self.tabs().get(title)
        return f"{self.url}?tab={number}" if number else self.url

    def tabs(self) -> dict[str, int]:
        """Return the numbers of the Data Manager's tabs by their titles, from left to right."""
        tabs = self.client.get("/api/dm/views", project=self.id)
        return {tab["data"]["title"]: tab["id"] for tab in tabs if "title" in tab["data"]}

    def held(self, title: str) -> list[int]:
        """Return the tasks that a tab shows, in its order."""
        reply = self.client.get("/api/tasks/", view=self.tabs()[title], page_size=_TASKS_PER_PAGE)
        return [task["id"] for task in reply["tasks"]]

    @classmethod
    def create(cls, client: LabelStudioClient, *, title: str, labels: Sequence[str]) -> Self:
        """Make a project in which an image gets one of `labels`."""
        body = {"title": title, "label_config": label_config(labels)}
        return cls(client, client.post("/api/projects", body)["id"])

    def upload(self, files: Mapping[str, bytes]) -> None:
        """Make a task of each file, given by name and content, many in one request."""
        items = list(files.items())
        for start in range(0, len(items), _FILES_PER_UPLOAD):
            self.client.upload(f"/api/projects/{self.id}/import", items[start : start + _FILES_PER_UPLOAD])

    def annotate(self, task_id: int, label: str) -> None:
        """Label a task, as a person does who submits."""
        self.client.post(f"/api/tasks/{task_id}/annotations/", {"result": [choice(label)], "lead_time": 1.0})

    def connect(self, url: str, *, title: str) -> None:
        """Connect the machine learning backend at `url`."""
        self.client.post("/api/ml/", {"project": self.id, "url": url, "title": title, "is_interactive": False})

    def settings(self) -> dict[str, Any]:
        """Return the project as Label Studio describes it."""
        settings: dict[str, Any] = self.client.get(f"/api/projects/{self.id}")
        return settings

    def tasks(self, *, ordering: str = "tasks:id") -> list[Task]:
        """Return every task in the Data Manager's order, such as "tasks:predictions_score" for ascending scores."""
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
        """Return the task that the label stream serves."""
        return int(self.client.get(f"/api/projects/{self.id}/next")["id"])


def label_config(labels: Sequence[str]) -> str:
    """Return a labelling config in which an image, `$image`, gets one of `labels`."""
    choices = "".join(f"<Choice value={quoteattr(label)}/>" for label in labels)
    return (
        '<View><Image name="image" value="$image" zoom="true"/>'
        f'<Choices name="label" toName="image" choice="single" showInLine="true">{choices}</Choices></View>'
    )


def choice(label: str) -> dict[str, object]:
    """Return the region by which a person says that an image is of a class."""
    return {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}


def _task(document: Mapping[str, Any]) -> Task:
    reference = document["data"]["image"]
    return Task(
        id=document["id"],
        # Label Studio puts a random prefix and a hyphen before the name that was uploaded.
        file=PurePosixPath(reference).name.partition("-")[2],
        reference=reference,
        labelled=document["total_annotations"] > 0,
        predictions=tuple(_prediction(prediction) for prediction in document["predictions"]),
    )


def _prediction(document: Mapping[str, Any]) -> Prediction:
    labels = [region["value"]["choices"][0] for region in document["result"] if "bald" in region["meta"]]
    return Prediction(document["model_version"], document["score"], labels[0] if labels else None)
