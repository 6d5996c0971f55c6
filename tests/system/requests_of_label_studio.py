"""Requests in the shapes that Label Studio 1.23 sends to a machine learning backend, with values of their own."""

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

_CREATED, _UPDATED = "2026-10-05T08:15:30.250001Z", "2026-10-05T08:16:31.500002Z"


def setup() -> dict[str, Any]:
    """Return the body of POST /setup."""
    return {
        "project": "7.1791188130",
        "schema": LABEL_CONFIG,
        "hostname": "http://127.0.0.1:8080",
        "access_token": "f" * 40,
        "extra_params": None,
    }


def predict(
    references: Sequence[object], *, label_config: str = LABEL_CONFIG, context: object = None
) -> dict[str, Any]:
    """Return the body of POST /predict for one task per image reference.

    Their numbers begin behind 100, which is in the audit slice of project 7, where labels are withheld.
    """
    return {
        "tasks": [task(101 + index, reference) for index, reference in enumerate(references)],
        "project": "7.1791188130",
        "label_config": label_config,
        "params": {"login": None, "password": None, "context": context},
    }


def task(number: int, reference: object) -> dict[str, Any]:
    """Return a task as /predict holds it."""
    return {**_task(number, reference), "annotations": [], "predictions": []}


def webhooks() -> dict[str, dict[str, Any]]:
    """Return the body of POST /webhook for each action."""
    skipped = _annotation(51, was_cancelled=True, result=[])
    labelled = _annotation(52, ground_truth=True, lead_time=2.5, result=[_region("bee")])
    return {
        "PROJECT_UPDATED": {"project": project()},
        "ANNOTATION_CREATED": {"annotation": skipped, "project": project(), "task": _event_task(111)},
        "ANNOTATION_UPDATED": {"annotation": labelled, "project": project(), "task": _event_task(111)},
        "ANNOTATIONS_DELETED": {"annotations": [{"id": 52}], "project": project()},
        "TASKS_CREATED": {"tasks": [_event_task(112)], "project": project()},
        "START_TRAINING": {"project": project()},
    }


def project() -> dict[str, Any]:
    """Return a project as webhooks hold it."""
    control = {
        "type": "Choices",
        "to_name": ["photo"],
        "inputs": [{"type": "Image", "valueType": None, "value": "image"}],
        "labels": ["ant", "bee", "cat"],
        "labels_attrs": {label: {"value": label} for label in ("ant", "bee", "cat")},
    }
    return {
        "id": 7,
        "task_number": 12,
        "finished_task_number": 3,
        "total_predictions_number": 12,
        "total_annotations_number": 3,
        "num_tasks_with_annotations": 3,
        "useful_annotation_number": 2,
        "ground_truth_number": 1,
        "skipped_annotations_number": 1,
        "title": "insects and others",
        "description": "",
        "label_config": LABEL_CONFIG,
        "parsed_label_config": {"kind": control},
        "label_config_hash": 1234567890123456789,
        "expert_instruction": "",
        "show_instruction": False,
        "show_skip_button": True,
        "enable_empty_annotation": True,
        "reveal_preannotations_interactively": False,
        "show_annotation_history": False,
        "show_collab_predictions": True,
        "evaluate_predictions_automatically": False,
        "token": "not-a-real-token",
        "result_count": 0,
        "color": "#FFFFFF",
        "maximum_annotations": 1,
        "min_annotations_to_start_training": 0,
        "control_weights": {"kind": {"overall": 1.0, "type": "Choices", "labels": {"ant": 1.0, "bee": 1.0}}},
        "model_version": "an-older-version",
        "data_types": {"image": "Image"},
        "is_draft": False,
        "is_published": False,
        "created_at": _CREATED,
        "updated_at": _UPDATED,
        "sampling": "Uncertainty sampling",
        "skip_queue": "REQUEUE_FOR_OTHERS",
        "show_ground_truth_first": False,
        "annotator_evaluation_enabled": False,
        "show_overlap_first": False,
        "overlap_cohort_percentage": 100,
        "task_data_login": None,
        "task_data_password": None,
        "pinned_at": None,
        "custom_task_lock_ttl": None,
        "deleted_at": None,
        "purge_at": None,
        "search_vector": None,
        "organization": 1,
        "created_by": 1,
        "deleted_by": None,
    }


def _task(number: int, reference: object) -> dict[str, Any]:
    return {
        "id": number,
        "data": {"image": reference},
        "meta": {},
        "created_at": _CREATED,
        "updated_at": _UPDATED,
        "is_labeled": False,
        "overlap": 1,
        "inner_id": number - 100,
        "total_annotations": 0,
        "cancelled_annotations": 0,
        "total_predictions": 0,
        "comment_count": 0,
        "unresolved_comment_count": 0,
        "last_comment_updated_at": None,
        "project": 7,
        "updated_by": None,
        "file_upload": None,
        "comment_authors": [],
    }


def _event_task(number: int) -> dict[str, Any]:
    return {**_task(number, "/data/upload/7/0a1b2c3d-ant.png"), "allow_skip": True, "precomputed_agreement": None}


def _annotation(number: int, *, result: list[Any], **differences: object) -> dict[str, Any]:
    return {
        "id": number,
        "result": result,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": _CREATED,
        "updated_at": _UPDATED,
        "draft_created_at": None,
        "lead_time": None,
        "prediction": {},
        "result_count": len(result),
        "unique_id": "11111111-2222-4333-8444-555555555555",
        "import_id": None,
        "last_action": None,
        "bulk_created": False,
        "task": 111,
        "project": 7,
        "completed_by": 1,
        "updated_by": 1,
        "parent_prediction": None,
        "parent_annotation": None,
        "last_created_by": None,
        **differences,
    }


def _region(label: str) -> dict[str, Any]:
    return {"from_name": "kind", "to_name": "photo", "type": "choices", "value": {"choices": [label]}}
