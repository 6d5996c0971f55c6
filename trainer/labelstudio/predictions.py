"""Predictions of a project: counted, listed, imported and deleted by model version."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from contract.label_studio import LabelStudioClient
from trainer.labelstudio.projects import project_path

_WRITE_TIMEOUT_S: Final = 3600.0
"""Label Studio stores 10,000 predictions in 12 s on SQLite, and takes 75 s to delete them."""


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """One prediction, as far as its place in the order goes."""

    id: int
    task: int
    model_version: str
    score: float | None
    result: Sequence[Mapping[str, Any]] = ()
    """Its regions, where they were asked for."""
    blank: bool = True
    """Whether it holds no region, so that Label Studio ticks nothing."""


def count_predictions(client: LabelStudioClient, project_id: int) -> dict[str, int]:
    """Return how many predictions of each model version the project holds."""
    return client.read(
        f"{project_path(project_id)}model-versions/",
        lambda reply: {str(each["model_version"]): int(each["count"]) for each in reply["static"]},
        what=f"project {project_id}",
        query={"extended": "true"},
    )


def list_predictions(
    client: LabelStudioClient, project_id: int, version: str, *, results_of: Collection[int] = ()
) -> list[StoredPrediction]:
    """Return every prediction of one model version, the oldest first; those of the tasks `results_of` with regions."""

    def make(found: Sequence[object]) -> list[StoredPrediction]:
        kept = (each for each in found if isinstance(each, StoredPrediction) and each.model_version == version)
        return sorted(kept, key=lambda each: each.id)

    # There is no asking for one version or for less than everything: what is not needed goes while it is parsed.
    return client.read(
        "/api/predictions/",
        make,
        what=f"project {project_id}",
        query={"project": project_id},
        timeout_s=_WRITE_TIMEOUT_S,
        hook=partial(_to_prediction, frozenset(results_of)),
    )


def _to_prediction(results_of: Collection[int], document: dict[str, Any]) -> StoredPrediction | dict[str, Any]:
    """What is inside of a prediction comes here first, and goes with it unless it is asked for."""
    if not {"id", "task", "model_version"} <= document.keys():
        return document
    return StoredPrediction(
        id=document["id"],
        task=document["task"],
        model_version=str(document["model_version"]),
        score=document["score"],
        result=document["result"] if document["task"] in results_of else (),
        blank=not document.get("result"),
    )


def import_predictions(client: LabelStudioClient, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Store predictions, each with `task`, `model_version`, `score` in [0, 1] and `result`.

    Label Studio drops those that it finds invalid without a word.

    Raises:
        Refused: if a task is not in the project; nothing is stored then.
        Unreachable: if it is not known whether they are or will be stored.
    """
    client.send(
        "POST",
        f"{project_path(project_id)}import/predictions",
        what=f"project {project_id}",
        body=predictions,
        timeout_s=_WRITE_TIMEOUT_S,
        once=True,
    )


def delete_prediction(client: LabelStudioClient, prediction_id: int) -> None:
    """Remove one prediction; one that is gone already is none the worse."""
    client.send("DELETE", f"/api/predictions/{prediction_id}/", what=f"prediction {prediction_id}", accepted=(404,))


def delete_predictions(client: LabelStudioClient, project_id: int, version: str) -> None:
    """Remove all predictions of one model version, which must not be the project's: Label Studio would unset that."""
    client.send(
        "DELETE",
        f"{project_path(project_id)}model-versions/",
        what=f"project {project_id}",
        body={"model_version": version},
        timeout_s=_WRITE_TIMEOUT_S,
        once=True,
    )
