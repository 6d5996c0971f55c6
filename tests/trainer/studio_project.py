"""The project of the fake Label Studio: its data, changes to it, and the Data Manager's filters and orderings."""

import itertools
import json
import math
import operator
from datetime import UTC, datetime


def label_config(*labels):
    choices = "".join(f'<Choice value="{label}"/>' for label in labels)
    choices = f'<Choices name="label" toName="image">{choices}</Choices>'
    return f'<View><Image name="image" value="$image"/>{choices}</View>'


CONFIG = label_config("cat", "dog")


class FakeProject:
    """Project 5, with tasks, predictions, views and webhooks by ID."""

    def __init__(self, tasks=0):
        self.project = {
            "id": 5,
            "title": "Pets",
            "label_config": CONFIG,
            "model_version": "",
            "sampling": "Sequential",
            "skip_queue": "REQUEUE_FOR_OTHERS",
            "created_at": "2026-11-01T00:00:00.000001Z",
        }
        self.tasks = {}
        self.predictions = {}
        self.views = {}
        self.webhooks = {}
        self.ids = itertools.count(1)
        self.microseconds = itertools.count()
        self.drops = lambda prediction: False
        """Whether an imported prediction is silently dropped."""
        for _ in range(tasks):
            self.add_task()

    def timestamp(self):
        """Return the current time; later than in any previous call."""
        return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.{next(self.microseconds):06}Z"

    # ---- tasks and annotations

    def add_task(self, **data):
        task_id = next(self.ids)
        self.tasks[task_id] = {
            "id": task_id,
            "data": data or {"image": f"http://images/{task_id}.png"},
            "annotations": [],
            "updated_at": self.timestamp(),
        }
        return task_id

    def delete_task(self, task):
        del self.tasks[task]
        self.predictions = {key: each for key, each in self.predictions.items() if each["task"] != task}

    def annotate(self, task, label, *, cancelled=False, control="label"):
        region = {"from_name": control, "to_name": "image", "type": "choices", "value": {"choices": [label]}}
        self.add_annotation(task, [region], was_cancelled=cancelled)

    def confirm(self, task):
        """Create an annotation from the prediction of the project's model version, like the bulk action."""
        [prediction] = [
            each
            for each in self.predictions.values()
            if (each["task"], each["model_version"]) == (task, self.project["model_version"])
        ]
        origin = {"parent_prediction": prediction["id"], "lead_time": None}
        self.add_annotation(task, prediction["result"], was_cancelled=False, **origin)

    def add_annotation(self, task, result, **fields):
        annotation = {"result": result, "completed_by": 1, "id": next(self.ids), **fields}
        annotation["created_at"] = annotation["updated_at"] = self.tasks[task]["updated_at"] = self.timestamp()
        self.tasks[task]["annotations"].append(annotation)

    def edit(self, task):
        """Update the time of a task's first annotation."""
        self.tasks[task]["annotations"][0]["updated_at"] = self.tasks[task]["updated_at"] = self.timestamp()

    def count_annotations(self, task):
        """Return the number of submitted and of skipped annotations."""
        cancelled = [bool(each["was_cancelled"]) for each in self.tasks[task]["annotations"]]
        return cancelled.count(False), cancelled.count(True)

    def statistics(self):
        """Return the counters of the project's JSON."""
        counts = [self.count_annotations(task) for task in self.tasks]
        submitted = sum(count for count, _ in counts)
        return {
            "task_number": len(self.tasks),
            "total_annotations_number": submitted,
            "useful_annotation_number": submitted,
            "skipped_annotations_number": sum(skipped for _, skipped in counts),
            "ground_truth_number": 0,
        }

    # ---- predictions

    def predict(self, task, version, score=0.5):
        prediction_id = next(self.ids)
        prediction = {"id": prediction_id, "task": task, "model_version": version, "score": score, "result": []}
        self.predictions[prediction_id] = prediction
        return prediction_id

    def import_predictions(self, predictions):
        if any(each["task"] not in self.tasks for each in predictions):
            return 400, {"detail": "invalid task"}
        kept = [each for each in predictions if not self.drops(each)]
        for each in kept:
            prediction_id = next(self.ids)
            self.predictions[prediction_id] = {"id": prediction_id, **each}
        return 201, {"created": len(kept)}

    def delete_version(self, version):
        if self.project["model_version"] == version:
            self.project["model_version"] = ""
        self.predictions = {key: each for key, each in self.predictions.items() if each["model_version"] != version}
        return 200, {}

    def scores(self, version):
        """Return the scores of a version's predictions by task."""
        scores = {}
        for each in self.predictions.values():
            if each["model_version"] == version:
                scores.setdefault(each["task"], []).append(each["score"])
        return scores

    def mean_score(self, task):
        """Return the score that the Data Manager shows for a task; None without a prediction."""
        scores = self.scores(self.project["model_version"]).get(task)
        return sum(scores) / len(scores) if scores else None

    def order(self):
        """Return the unlabelled tasks in the order of uncertainty sampling."""
        scores = self.scores(self.project["model_version"])
        return sorted((task for task in scores if not self.count_annotations(task)[0]), key=lambda task: scores[task])

    # ---- the Data Manager

    def tabs(self):
        """Return the tasks of each tab, in the tab's order, by title."""
        tabs = {}
        for view in self.views.values():
            query = {"filters": view.get("filters") or {"items": []}, "ordering": view["ordering"] or ["tasks:id"]}
            page = self.list_tasks({"query": json.dumps(query), "page_size": 1000})
            tabs[view["title"]] = [task["id"] for task in page["tasks"]]
        return tabs

    def list_tasks(self, parameters):
        """Return the first page of the tasks that match a query."""
        query = json.loads(parameters["query"])
        filters = query["filters"]["items"]
        tasks = [task for task in self.tasks.values() if all(self.matches(task, each) for each in filters)]
        [ordering] = query.get("ordering", ["tasks:id"])
        column, descending = ordering.removeprefix("-").removeprefix("tasks:"), ordering.startswith("-")
        if column == "predictions_score":
            scores, sign = {task["id"]: self.mean_score(task["id"]) for task in tasks}, -1 if descending else 1
            tasks.sort(key=lambda task: sign * scores[task["id"]] if scores[task["id"]] is not None else math.inf)
        else:
            tasks.sort(key=lambda task: task[column], reverse=descending)
        page = tasks[: int(parameters["page_size"])]
        return {"tasks": [self.task_json(task) for task in page], "total": len(tasks)}

    def task_json(self, task):
        submitted, skipped = self.count_annotations(task["id"])
        counts = {"total_annotations": submitted, "cancelled_annotations": skipped, "is_labeled": submitted > 0}
        return {**task, **counts}

    def matches(self, task, condition):
        results = [json.dumps(each["result"]) for each in self.predictions.values() if each["task"] == task["id"]]
        values = {**self.task_json(task), "predictions_results": results}
        values["is_labeled"] = "true" if values["is_labeled"] else "false"
        value = values[condition["filter"].removeprefix("filter:tasks:")]
        return _OPERATORS[condition["operator"]](value, condition["value"])


def _equal(value, operand):
    return operand in value if isinstance(value, list) else value == operand


_OPERATORS = {
    "equal": _equal,
    "greater": operator.gt,
    "greater_or_equal": operator.ge,
    "less": operator.lt,
    "in_list": lambda value, operand: value in operand,
    "contains": lambda values, operand: any(operand in value for value in values),
    "not_contains": lambda values, operand: not any(operand in value for value in values),
}
"""The Data Manager's filter operators."""
