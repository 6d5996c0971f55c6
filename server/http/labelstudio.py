"""Label Studio's JSON: what its requests mean, and what it accepts as a prediction.

The only place in the server that knows its field names. Where a body is not what Label Studio sends, RequestError names
the field. Knows no HTTP and no graph.
"""

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from contract.errors import RequestError
from contract.labelconfig import ChoicesControl, parse_label_config
from contract.matching import match_control
from contract.scores.acquisition import LABEL_THRESHOLD, label_studio_score, normalised_bald
from contract.scores.calibration import temper
from contract.scores.holdout import holdout_share, is_held_out
from contract.tasks import find_reference
from contract.versions.manifest import Manifest
from server.inference.batching import Extras, ImageScores, Outcome
from server.inference.known_images import ImageReference, NoImage
from server.settings import Score

NO_VERSION = "INITIAL"
"""What /setup answers before any version is in use, as label-studio-ml does."""

START_TRAINING = "START_TRAINING"
"""The action of a webhook when somebody presses Start Training."""

_MOST_ACTION = 100
"""Characters; Label Studio's longest has about 30."""

_MOST_ID = 2**63 - 1
"""What Label Studio's databases number tasks up to."""

_log = logging.getLogger(__name__)

JsonObject = dict[str, Any]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Task:
    """What is needed of a task."""

    id: int | None
    data: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """The body of /predict or /score. Interactive requests are no different: their context changes no image."""

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
    """The project's, where the event brings it along, as START_TRAINING does."""


@dataclass(frozen=True, slots=True)
class Target:
    """The control that a version's predictions are for, and what each of its labels is stored as there."""

    control: ChoicesControl
    stored: tuple[str | None, ...]
    """In the order of the version's labels; None for a label that the config does not have."""


def parse_predict(body: object) -> PredictRequest:
    """Read the body of /predict."""
    fields = _expect(body, dict, "the body")
    tasks = _expect(fields.get("tasks"), list, "tasks")
    return PredictRequest(
        label_config=_expect(fields.get("label_config"), str, "label_config"),
        tasks=tuple(_parse_task(task, i) for i, task in enumerate(tasks)),
        project_id=_project_id(fields.get("project")),
    )


def parse_score(body: object) -> tuple[PredictRequest, str]:
    """Read the body of /score, and which version is to answer.

    It is that of /predict with `version`, and with `embeddings` and `passes`, which are false by default.
    """
    fields = _expect(body, dict, "the body")
    version = _expect(fields.get("version"), str, "version")
    embedding, passes = (_expect(fields.get(name, False), bool, name) for name in ("embeddings", "passes"))
    return replace(parse_predict(body), extras=Extras(embedding, passes)), version


def parse_setup(body: object) -> tuple[str | None, int | None]:
    """Read the body of /setup: the labelling config, None if the project has none yet, and the project."""
    fields = _expect(body, dict, "the body")
    schema = fields.get("schema")
    label_config = None if schema is None else _expect(schema, str, "schema")
    return label_config or None, _project_id(fields.get("project"))


def parse_webhook(body: object) -> Event:
    """Read the body of /webhook."""
    fields = _expect(body, dict, "the body")
    action = _expect(fields.get("action"), str, "action")
    if len(action) > _MOST_ACTION:
        raise RequestError(f"action must have at most {_MOST_ACTION} characters, got {len(action)}")
    project = fields.get("project")
    if not isinstance(project, dict):
        return Event(action, None, None)
    label_config = project.get("label_config")
    return Event(action, _project_id(project.get("id")), label_config if isinstance(label_config, str) else None)


def resolve_target(label_config: str, version: str, control: str | None, labels: tuple[str, ...]) -> Target:
    """Find the control that a version answers for, and log the labels that it does not have.

    Raises:
        LabelMismatch: if the version knows the labels of no control.
        ConfigError: if the config classifies no image.
    """
    chosen = match_control(parse_label_config(label_config), version=version, name=control, labels=labels)
    shown = {choice.displayed: choice.stored for choice in reversed(chosen.choices)}
    known = {**shown, **{choice.stored: choice.stored for choice in chosen.choices}}
    stored = tuple(known.get(label) for label in labels)
    if missing := [label for label, found in zip(labels, stored, strict=True) if found is None]:
        _log.warning(
            "the labelling config lacks labels of the model; images predicted as one of them get a score and no label",
            extra={"model_version": version, "from_name": chosen.from_name, "missing": missing},
        )
    return Target(chosen, stored)


def find_images(request: PredictRequest, target: Target) -> list[ImageReference | NoImage]:
    """Return each task's image reference, or why it has none."""
    return [_find_image(task, target.control.value_key, request.project_id) for task in request.tasks]


def build_predictions(
    outcomes: Sequence[Outcome], manifest: Manifest, target: Target, direction: Score
) -> list[JsonObject]:
    """Return one element per outcome, in order; of an image without a score an empty one, which Label Studio skips.

    A result is a region with the predicted labels, or empty if the config lacks them. A region's probability is for
    people and so calibrated. Label Studio sorts by the prediction's score, which is not.
    """
    predictions: list[JsonObject] = [{} for _ in outcomes]
    scored = {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, ImageScores)}
    if not scored:
        return predictions
    measure = label_studio_score if direction is Score.AGREEMENT else normalised_bald
    bald = np.array([scores.bald for scores in scored.values()])  # (N,)
    directed = measure(bald, len(manifest.labels), multiple=manifest.multiple).tolist()
    means = np.stack([scores.mean_probabilities for scores in scored.values()])  # (N, C)
    predicted = _predict_labels(means, manifest, target)
    calibrated = temper(means, manifest.temperature, multiple=manifest.multiple)  # (N, C)
    values = {choice.stored: choice.result_value for choice in target.control.choices}
    for (index, scores), score, labels, shown in zip(scored.items(), directed, predicted, calibrated, strict=True):
        predictions[index] = {"model_version": manifest.version, "score": score, "result": []}
        if chosen := {label: stored for label in labels if (stored := target.stored[label]) is not None}:
            probability = float(shown[list(chosen)].min())
            about = {"bald": scores.bald, "entropy": scores.entropy, "model_version": manifest.version}
            region = {
                "from_name": target.control.from_name,
                "to_name": target.control.to_name,
                "type": "choices",
                "value": {"choices": [values[stored] for stored in dict.fromkeys(chosen.values())]},
                "score": probability,
                "meta": {**about, "probability": probability},
            }
            predictions[index]["result"] = [region]
    return predictions


def withhold_labels(request: PredictRequest, predictions: Sequence[JsonObject], manifest: Manifest) -> list[JsonObject]:
    """Return predictions of a request's tasks, in order, those that are held out with their score and without a label.

    Label Studio ticks what is predicted when it opens a task, and what versions are measured on must not be agreed to.
    Which tasks are held out can only be told of those that have a number, in a project that has one.
    """
    if request.project_id is None:
        return list(predictions)
    numbered = np.array([task.id is not None for task in request.tasks], bool)  # (N,)
    task_ids = np.array([task.id or 0 for task in request.tasks], np.int64)
    audit = is_held_out(request.project_id, task_ids, holdout_share(manifest)) & numbered
    return [
        {**prediction, "result": []} if prediction and withheld else prediction
        for prediction, withheld in zip(predictions, audit.tolist(), strict=True)
    ]


def build_scores(
    request: PredictRequest, outcomes: Sequence[Outcome], *, manifest: Manifest, target: Target, direction: Score
) -> list[JsonObject]:
    """Return one element per outcome, in order: the prediction and what it was made from, or the error."""
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
    """Return the likeliest label of each image or, of several, those that hold.

    Where none does, it is still the likeliest: something to correct, with a score below one half.
    """
    likeliest = [[label] for label in means.argmax(axis=1).tolist()]
    if not (manifest.multiple and target.control.multiple):
        return likeliest
    return [np.flatnonzero(row).tolist() or one for row, one in zip(means >= LABEL_THRESHOLD, likeliest, strict=True)]


def _find_image(task: Task, key: str, project_id: int | None) -> ImageReference | NoImage:
    reference = find_reference(task.data, key)
    if reference is None:
        return NoImage(
            f"expected an image's address under {key!r} in the data of task {task.id}, as the labelling config says, "
            f"found none there and the keys {[name[:40] for name in sorted(task.data)[:10]]}; import the task again"
        )
    return ImageReference(reference, task.id, project_id)


def _parse_task(task: object, index: int) -> Task:
    fields = _expect(task, dict, f"tasks[{index}]")
    identifier = fields.get("id")
    data = _expect(fields.get("data"), dict, f"tasks[{index}].data")
    return Task(identifier if type(identifier) is int and abs(identifier) <= _MOST_ID else None, data)


def _project_id(project: object) -> int | None:
    """Label Studio sends "<id>.<time of creation>"; only the id is of use, and only to fetch from cloud storage."""
    head = str(project).partition(".")[0]
    return int(head) if head.isascii() and head.isdecimal() and len(head) < 19 else None


def _expect(value: object, kind: type[_T], name: str) -> _T:
    if not isinstance(value, kind):
        found = _JSON_TYPES.get(type(value), "something else")
        raise RequestError(f"{name} must be {_JSON_TYPES[kind]}, got {found}")
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
