"""What the trainer asks of Label Studio, in values of its own: projects, tasks and predictions.

All functions raise ConfigError if Label Studio does not answer, or has no such project; the kinds of it are
`contract.label_studio`'s.
"""

from trainer.labelstudio.predictions import (
    StoredPrediction,
    count_predictions,
    delete_prediction,
    delete_predictions,
    import_predictions,
    list_predictions,
)
from trainer.labelstudio.projects import (
    UNCERTAINTY_SAMPLING,
    Extent,
    Project,
    State,
    connect,
    count_annotations,
    project_state,
    read_extent,
    read_project,
    switch_model_version,
)
from trainer.labelstudio.tasks import (
    PoolTask,
    annotated_tasks,
    condition,
    count_labels_since,
    count_tasks,
    count_unlabelled,
    is_unlabelled,
    tasks_by_number,
    tasks_since,
    unlabelled_tasks,
)

__all__ = [
    "UNCERTAINTY_SAMPLING",
    "Extent",
    "PoolTask",
    "Project",
    "State",
    "StoredPrediction",
    "annotated_tasks",
    "condition",
    "connect",
    "count_annotations",
    "count_labels_since",
    "count_predictions",
    "count_tasks",
    "count_unlabelled",
    "delete_prediction",
    "delete_predictions",
    "import_predictions",
    "is_unlabelled",
    "list_predictions",
    "project_state",
    "read_extent",
    "read_project",
    "switch_model_version",
    "tasks_by_number",
    "tasks_since",
    "unlabelled_tasks",
]
