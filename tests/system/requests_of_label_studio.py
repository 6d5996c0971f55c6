"""Requests in the shapes that Label Studio 1.23 sends to a machine learning backend, with values of their own.

Of a project and an annotation they hold what tells whose they are; Label Studio sends some forty fields more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LABEL_CONFIG = (
    '<View><Image name="photo" value="$image"/>'
    '<Choices name="kind" toName="photo" choice="single" showInLine="true">'
    '<Choice value="ant"/><Choice value="bee"/><Choice value="cat"/></Choices></View>'
)

FROM_LABEL_STUDIO = {"User-Agent": "heartex/1.23.2", "Accept": "*/*"}
FROM_WEBHOOK = {"User-Agent": "python-requests/2.34.2", "Accept": "*/*"}

_PROJECT = {
    "id": 7,
    "title": "insects and others",
    "label_config": LABEL_CONFIG,
    "parsed_label_config": {"kind": {"type": "Choices", "to_name": ["photo"], "labels": ["ant", "bee", "cat"]}},
    "label_config_hash": 1234567890123456789,
    "model_version": "an-older-version",
    "task_number": 12,
    "num_tasks_with_annotations": 3,
    "sampling": "Uncertainty sampling",
    "expert_instruction": "",
    "token": "not-a-real-token",
    "pinned_at": None,
}


def setup() -> dict[str, Any]:
    """Return the body of POST /setup."""
    return {
        "project": "7.1791188130",
        "schema": LABEL_CONFIG,
        "hostname": "http://127.0.0.1:8080",
        "access_token": "f" * 40,
        "extra_params": None,
    }


def predict(references: Sequence[object], *, context: object = None) -> dict[str, Any]:
    """Return the body of POST /predict for one task per image reference.

    Their numbers begin behind 100, which is in the random holdout of project 7, where labels are withheld.
    """
    return {
        "tasks": [
            {**_task(101 + index, reference), "annotations": [], "predictions": []}
            for index, reference in enumerate(references)
        ],
        "project": "7.1791188130",
        "label_config": LABEL_CONFIG,
        "params": {"login": None, "password": None, "context": context},
    }


def webhooks() -> dict[str, dict[str, Any]]:
    """Return the body of POST /webhook for each action."""
    region = {"from_name": "kind", "to_name": "photo", "type": "choices", "value": {"choices": ["bee"]}}
    task = {**_task(111, "/data/upload/7/0a1b2c3d-ant.png"), "allow_skip": True}
    skipped = {"id": 51, "task": 111, "project": 7, "was_cancelled": True, "result": []}
    labelled = {"id": 52, "task": 111, "project": 7, "was_cancelled": False, "result": [region], "lead_time": 2.5}
    bodies: dict[str, dict[str, Any]] = {
        "PROJECT_UPDATED": {},
        "ANNOTATION_CREATED": {"annotation": skipped, "task": task},
        "ANNOTATION_UPDATED": {"annotation": labelled, "task": task},
        "ANNOTATIONS_DELETED": {"annotations": [{"id": 52}]},
        "TASKS_CREATED": {"tasks": [task]},
        "START_TRAINING": {},
    }
    return {action: {"action": action, "project": _PROJECT, **body} for action, body in bodies.items()}


def _task(number: int, reference: object) -> dict[str, Any]:
    return {
        "id": number,
        "data": {"image": reference},
        "meta": {},
        "created_at": "2026-10-05T08:15:30.250001Z",
        "is_labeled": False,
        "overlap": 1,
        "inner_id": number - 100,
        "total_annotations": 0,
        "project": 7,
        "updated_by": None,
        "file_upload": None,
        "comment_authors": [],
    }
