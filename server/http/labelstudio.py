"""Label Studio's JSON: parses its requests, and builds predictions.

The only module of the server that knows Label Studio's field names. An invalid body raises RequestError, which names
the field.
"""

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from contract.errors import RequestError
from contract.labelconfig import Choice, ChoicesControl, parse_label_config
from contract.matching import match_control
from contract.scores.acquisition import LABEL_THRESHOLD, label_studio_score, normalised_bald
from contract.scores.calibration import temper
from contract.scores.holdout import holdout_share, is_held_out
from contract.tasks import find_reference
from contract.versions.manifest import Manifest
from server.inference.batching import Extras, ImageScores, Outcome
from server.inference.feature_lookup import ImageReference, NoImage
from server.settings import Score

NO_VERSION = "INITIAL"
"""The version in /setup's response before any is in use, as in label-studio-ml."""

START_TRAINING = "START_TRAINING"
"""The action of the webhook that the button Start Training sends."""

_MAX_ACTION_CHARS = 100
"""Label Studio's longest action has about 30."""

_MAX_ID = 2**63 - 1
"""Largest task id in Label Studio's database."""

_log = logging.getLogger(__name__)

JsonObject = dict[str, Any]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Task:
    """Id and data of a task."""

    id: int | None
    data: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """The body of /predict or /score. The context of interactive requests is ignored."""

    tasks: tuple[Task, ...]
    label_config: str
    project_id: int | None
    extras: Extras = Extras()


@dataclass(frozen=True, slots=True)
class Event:
    """The body of /webhook."""

    action: str
    project: int | None
    label_config: str | None
    """The project's labelling config, if the event has it, as START_TRAINING does."""


@dataclass(frozen=True, slots=True)
class Target:
    """The control that predictions are for, and its choice for each of the version's labels."""

    control: ChoicesControl
    choices: tuple[Choice | None, ...]
    """In the order of the version's labels; None for a label that the config lacks."""


def parse_predict(body: object) -> PredictRequest:
    """Parse the body of /predict."""
    fields = _expect(body, dict, "the body")
    tasks = _expect(fields.get("tasks"), list, "tasks")
    return PredictRequest(
        label_config=_expect(fields.get("label_config"), str, "label_config"),
        tasks=tuple(_parse_task(task, i) for i, task in enumerate(tasks)),
        project_id=_project_id(fields.get("project")),
    )


def parse_score(body: object) -> tuple[PredictRequest, str]:
    """Parse the body of /score; return the request and the requested version.

    The body is that of /predict with `version`, and optionally `embeddings` and `passes`.
    """
    fields = _expect(body, dict, "the body")
    version = _expect(fields.get("version"), str, "version")
    embedding, passes = (_expect(fields.get(name, False), bool, name) for name in ("embeddings", "passes"))
    return replace(parse_predict(body), extras=Extras(embedding, passes)), version


def parse_setup(body: object) -> tuple[str | None, int | None]:
    """Parse the body of /setup; return the labelling config, None if the project has none yet, and the project id."""
    fields = _expect(body, dict, "the body")
    schema = fields.get("schema")
    label_config = None if schema is None else _expect(schema, str, "schema")
    return label_config or None, _project_id(fields.get("project"))


def parse_webhook(body: object) -> Event:
    """Parse the body of /webhook."""
    fields = _expect(body, dict, "the body")
    action = _expect(fields.get("action"), str, "action")
    if len(action) > _MAX_ACTION_CHARS:
        raise RequestError(f"action must have at most {_MAX_ACTION_CHARS} characters, got {len(action)}")
    project = fields.get("project")
    if not isinstance(project, dict):
        return Event(action, None, None)
    label_config = project.get("label_config")
    return Event(action, _project_id(project.get("id")), label_config if isinstance(label_config, str) else None)


def resolve_target(label_config: str, version: str, control: str | None, labels: tuple[str, ...]) -> Target:
    """Return the control that a version's predictions are for; log labels of the version that the control lacks.

    Raises:
        LabelMismatch: if no control has the version's labels.
        ConfigError: if the config is invalid or classifies no image.
    """
    matched = match_control(parse_label_config(label_config), version=version, name=control, labels=labels)
    choices = matched.find_choices(labels)
    if missing := [label for label, choice in zip(labels, choices, strict=True) if choice is None]:
        _log.warning(
            "the labelling config lacks labels of the model; images predicted as one of them get a score and no label",
            extra={"model_version": version, "from_name": matched.from_name, "missing": missing},
        )
    return Target(matched, choices)


def find_images(request: PredictRequest, target: Target) -> list[ImageReference | NoImage]:
    """Return the image reference of each task, or an error for a task without one."""
    return [_find_image(task, target.control.value_key, request.project_id) for task in request.tasks]


def build_predictions(
    outcomes: Sequence[Outcome], manifest: Manifest, target: Target, direction: Score
) -> list[JsonObject]:
    """Return one prediction per outcome, in order; an empty one, which Label Studio skips, for an image without scores.

    The displayed probability is calibrated; the prediction's score, by which Label Studio sorts, is not.
    """
    predictions: list[JsonObject] = [{} for _ in outcomes]
    scored = {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, ImageScores)}
    if not scored:
        return predictions
    to_score = label_studio_score if direction is Score.AGREEMENT else normalised_bald
    bald = np.array([scores.bald for scores in scored.values()])  # (N,)
    sort_scores = to_score(bald, len(manifest.labels), multiple=manifest.multiple).tolist()
    means = np.stack([scores.mean_probabilities for scores in scored.values()])  # (N, C)
    predicted = _predict_labels(means, manifest, target)
    calibrated = temper(means, manifest.temperature, multiple=manifest.multiple)  # (N, C)
    for (index, scores), score, labels, row in zip(scored.items(), sort_scores, predicted, calibrated, strict=True):
        meta = {"bald": scores.bald, "entropy": scores.entropy, "model_version": manifest.version}
        result = _build_result(labels, row, target, meta)
        predictions[index] = {"model_version": manifest.version, "score": score, "result": result}
    return predictions


def _build_result(
    labels: Sequence[int], probabilities: npt.NDArray[np.float32], target: Target, meta: JsonObject
) -> list[JsonObject]:
    """Return a region with the predicted labels, or no region if the config lacks them all.

    `probabilities` (C,) are calibrated; the lowest of the predicted labels is displayed.
    """
    choices = {label: choice for label in labels if (choice := target.choices[label])}
    if not choices:
        return []
    probability = float(probabilities[list(choices)].min())
    return [
        {
            "from_name": target.control.from_name,
            "to_name": target.control.to_name,
            "type": "choices",
            "value": {"choices": [choice.result_value for choice in dict.fromkeys(choices.values())]},
            "score": probability,
            "meta": {**meta, "probability": probability},
        }
    ]


def withhold_labels(request: PredictRequest, predictions: Sequence[JsonObject], manifest: Manifest) -> list[JsonObject]:
    """Return the predictions without the labels of tasks in the random holdout, which keep their scores.

    Label Studio preselects the predicted label when it opens a task, which would bias the labels that versions are
    measured on. Only tasks with an id in a project with an id can be in the holdout.
    """
    if request.project_id is None:
        return list(predictions)
    has_id = np.array([task.id is not None for task in request.tasks], bool)  # (N,)
    task_ids = np.array([task.id or 0 for task in request.tasks], np.int64)
    held_out = is_held_out(request.project_id, task_ids, holdout_share(manifest)) & has_id
    return [
        {**prediction, "result": []} if prediction and is_withheld else prediction
        for prediction, is_withheld in zip(predictions, held_out.tolist(), strict=True)
    ]


def build_scores(
    request: PredictRequest, outcomes: Sequence[Outcome], *, manifest: Manifest, target: Target, direction: Score
) -> list[JsonObject]:
    """Return one element per outcome, in order: the prediction with its probabilities and uncertainty, or the error."""
    predictions = build_predictions(outcomes, manifest, target, direction)
    return [
        {"task": task.id, **_build_score(outcome, prediction)}
        for task, outcome, prediction in zip(request.tasks, outcomes, predictions, strict=True)
    ]


def _build_score(outcome: Outcome, prediction: JsonObject) -> JsonObject:
    if not isinstance(outcome, ImageScores):
        return {"error": {"code": outcome.code, "detail": str(outcome), "later": outcome.later}}
    return {
        "prediction": prediction,
        "probabilities": outcome.mean_probabilities.tolist(),
        "bald": outcome.bald,
        "entropy": outcome.entropy,
        **({} if outcome.embedding is None else {"embedding": _encode(outcome.embedding, "<f2")}),
        **({} if outcome.pass_probabilities is None else {"passes": _encode(outcome.pass_probabilities, "<f4")}),
    }


def _encode(array: npt.NDArray[np.float32], kind: str) -> str:
    return base64.b64encode(array.astype(kind).tobytes()).decode()


def _predict_labels(means: npt.NDArray[np.float32], manifest: Manifest, target: Target) -> list[list[int]]:
    """Return the labels of each image: the most probable one, or for `multiple` all that reach `LABEL_THRESHOLD`.

    If none does, the most probable one is returned, for annotators to correct.
    """
    top = [[label] for label in means.argmax(axis=1).tolist()]
    if not (manifest.multiple and target.control.multiple):
        return top
    return [np.flatnonzero(row).tolist() or best for row, best in zip(means >= LABEL_THRESHOLD, top, strict=True)]


def _find_image(task: Task, key: str, project_id: int | None) -> ImageReference | NoImage:
    reference = find_reference(task.data, key)
    if reference is None:
        return NoImage(
            f"expected an image's address in the data of task {task.id} under {key!r}, the labelling config's key, got "
            f"none and the keys {[name[:40] for name in sorted(task.data)[:10]]}; import the task again"
        )
    return ImageReference(reference, task.id, project_id)


def _parse_task(task: object, index: int) -> Task:
    fields = _expect(task, dict, f"tasks[{index}]")
    identifier = fields.get("id")
    data = _expect(fields.get("data"), dict, f"tasks[{index}].data")
    return Task(identifier if type(identifier) is int and abs(identifier) <= _MAX_ID else None, data)


def _project_id(project: object) -> int | None:
    """Return the project's id; Label Studio sends "<id>.<time of creation>"."""
    head = str(project).partition(".")[0]
    return int(head) if head.isascii() and head.isdecimal() and len(head) < 19 else None


def _expect(value: object, kind: type[_T], name: str) -> _T:
    if not isinstance(value, kind):
        raise RequestError(f"{name} must be {_JSON_TYPES[kind]}, got {_JSON_TYPES.get(type(value), 'something else')}")
    return value


_JSON_TYPES: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}
