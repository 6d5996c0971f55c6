"""Which model answers for a project that asks at the root, where there are several.

Of the models that know the project's labels it is the one that ranked the project last, else the one whose version in
use was trained on it, of several the newest, else the only one. Nothing is guessed: a project that several models could
answer for is refused, and told to ask for one by its address. Reads nothing but memory.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from contract.errors import AmbiguousProject, LabelMismatch, name_some
from contract.labelconfig import ChoicesControl, parse_label_config
from contract.matching import format_controls, format_labels, matches_any
from server.inference.engine import Engine
from server.inference.model import Model
from server.inference.models import Models

PREFIX: Final = "/p/"
"""Of the address by which a project asks for a model by name."""

_NAMED: Final = 5
_CONFIGS_REMEMBERED: Final = 64


_parse = lru_cache(_CONFIGS_REMEMBERED)(parse_label_config)


def choose_model(models: Models, label_config: str, project: int | None) -> Model:
    """Return the model that answers for a project of this labelling config.

    Raises:
        ConfigError: if the config classifies no image.
        LabelMismatch: if none does, or if it cannot be told which.
    """
    if (alone := models.alone) is not None:
        return alone
    controls = _parse(label_config)
    engines = {model: model.engine for model in models.all}
    fit = [model for model, engine in engines.items() if engine and matches_any(controls, engine.manifest.labels)]
    found = _own(fit or [model for model in engines if model.unpublished], project)
    if found is not None:
        return found
    if len(fit) == 1:
        return fit[0]
    raise _refuse_ambiguous(fit, project) if fit else _refuse_unknown(controls, engines)


def _own(models: Sequence[Model], project: int | None) -> Model | None:
    """Return the one that ranked the project last or, where none has, the newest that was trained on it."""
    if project is None:
        return None
    if ranked := [model for model in models if project in model.projects]:
        return max(ranked, key=lambda model: model.projects[project])
    seen = [(engine, model, engine.manifest.training.project) for model in models if (engine := model.engine)]
    trained = {engine.version: model for engine, model, of in seen if of is not None and of.id == project}
    return trained[max(trained)] if trained else None


def _refuse_ambiguous(models: Sequence[Model], project: int | None) -> AmbiguousProject:
    names = name_some([model.name for model in models], most=_NAMED)
    return AmbiguousProject(
        f"{len(models)} models know the labels of this project ({names}), and none was trained on project {project} or "
        f"has ranked it; give Label Studio the address that ends in {PREFIX}NAME, with the model's name, or train on "
        "the project"
    )


def _refuse_unknown(controls: Sequence[ChoicesControl], engines: dict[Model, Engine | None]) -> LabelMismatch:
    known = [
        f"{model.name}: {format_labels(engine.manifest.labels) if engine else 'no version in use'}"
        for model, engine in engines.items()
    ]
    return LabelMismatch(
        f"expected a project with the labels of a model ({name_some(known, most=_NAMED, between='; ')}), its labelling "
        f"config has others ({format_controls(controls)}); train a version on this project"
    )
