"""A fake Label Studio in memory, over HTTP; tests/system uses the real one."""

import base64
import itertools
import json
import math
import operator
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from bench.harness.hosts import Request, host, reply

TOKEN = "0123456789abcdef0123456789abcdef01234567"


def label_config(*labels):
    choices = "".join(f'<Choice value="{label}"/>' for label in labels)
    choices = f'<Choices name="label" toName="image">{choices}</Choices>'
    return f'<View><Image name="image" value="$image"/>{choices}</View>'


CONFIG = label_config("cat", "dog")


def jwt(**claims):
    """Return a JSON web token with the given claims, valid for an hour."""
    parts = ({"alg": "HS256"}, {"exp": int(time.time()) + 3600, **claims})
    head, body = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return f"{head}.{body}.c2lnbmF0dXJl"


class Aborted(Exception):
    """Answers the request with a status only."""

    def __init__(self, status):
        self.status = status


class Studio:
    """Project 5: its tasks, annotations and predictions."""

    def __init__(self, tasks=0):
        self.project = {"id": 5, "title": "Pets", "label_config": CONFIG, "model_version": "", "sampling": "Sequential"}
        self.project |= {"created_at": "2026-11-01T00:00:00.000001Z", "skip_queue": "REQUEUE_FOR_OTHERS"}
        self.views = {}
        self.tasks = {}
        self.predictions = {}
        self.webhooks = {}
        self.numbers = itertools.count(1)
        self.ticks = itertools.count()
        self.before = lambda request: None
        """Called with each request before it is answered; may raise Aborted."""
        self.drops = lambda prediction: False
        """Whether an imported prediction is silently dropped."""
        for _ in range(tasks):
            self.add_task()

    def refuse(self, method, status, *, after=lambda request: None):
        """Answer requests of a method with a status, after calling `after`."""

        def before(request):
            if request.method == method:
                after(request)
                raise Aborted(status)

        self.before = before

    def add_task(self, **data):
        number = next(self.numbers)
        self.tasks[number] = {
            "id": number,
            "data": data or {"image": f"http://images/{number}.png"},
            "annotations": [],
            "updated_at": self.moment(),
        }
        return number

    def annotate(self, task, label, *, cancelled=False, control="label"):
        region = {"from_name": control, "to_name": "image", "type": "choices", "value": {"choices": [label]}}
        self.add_annotation(task, [region], was_cancelled=cancelled)

    def confirm(self, task):
        """Create an annotation from the prediction of the project's model version, as bulk confirmation does."""
        version = self.project["model_version"]
        [parent] = [
            each for each in self.predictions.values() if (each["task"], each["model_version"]) == (task, version)
        ]
        self.add_annotation(task, parent["result"], parent_prediction=parent["id"], lead_time=None, was_cancelled=False)

    def add_annotation(self, task, result, **more):
        annotation = {"result": result, "completed_by": 1, "id": next(self.numbers), **more}
        annotation["created_at"] = annotation["updated_at"] = self.tasks[task]["updated_at"] = self.moment()
        self.tasks[task]["annotations"].append(annotation)

    def edit(self, task):
        """Update the time of a task's first annotation."""
        self.tasks[task]["annotations"][0]["updated_at"] = self.tasks[task]["updated_at"] = self.moment()

    def moment(self):
        """Return the time, later than on any call before."""
        return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.{next(self.ticks):06}Z"

    def delete_task(self, task):
        del self.tasks[task]
        self.predictions = {number: each for number, each in self.predictions.items() if each["task"] != task}

    def predict(self, task, version, score=0.5):
        number = next(self.numbers)
        self.predictions[number] = {"id": number, "task": task, "model_version": version, "score": score, "result": []}
        return number

    def scores(self, version):
        """Return the scores of a version's predictions by task."""
        scores = {}
        for each in self.predictions.values():
            if each["model_version"] == version:
                scores.setdefault(each["task"], []).append(each["score"])
        return scores

    def order(self):
        """Return the unlabelled tasks in the order of uncertainty sampling."""
        scores = self.scores(self.project["model_version"])
        return sorted((task for task in scores if not self.counts(task)[0]), key=lambda task: scores[task])

    def counts(self, task):
        cancelled = [bool(each["was_cancelled"]) for each in self.tasks[task]["annotations"]]
        return cancelled.count(False), cancelled.count(True)

    # ---- over HTTP

    def answer(self, handler, request: Request):
        try:
            self.before(request)
            status, content = self.route(request)
        except Aborted as aborted:
            status, content = aborted.status, {"detail": "aborted"}
        body = b"" if content is None else json.dumps(content).encode()
        reply(body, status=status, content_type="application/json")(handler, request)

    def route(self, request):  # noqa: PLR0911 - a table of routes
        parts = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        body = json.loads(request.body) if request.body else None
        steps = parts.path.strip("/").split("/")[1:]
        match request.method, steps:
            case "GET", ["current-user", "whoami"]:
                return 200, {"id": 1, "email": "ann@example.com"}
            case "GET", ["projects", "5"]:
                return 200, {**self.project, **self.counters()}
            case "PATCH", ["projects", "5"]:
                return self.change(body)
            case "GET", ["tasks"]:
                return 200, self.page(query)
            case "GET", ["predictions"]:
                return 200, list(self.predictions.values())
            case "DELETE", ["predictions", number]:
                return (204, None) if self.predictions.pop(int(number), None) else (404, {})
            case "GET", ["projects", "5", "model-versions"]:
                versions = [each["model_version"] for each in self.predictions.values()]
                return 200, {"static": [{"model_version": v, "count": versions.count(v)} for v in set(versions)]}
            case "DELETE", ["projects", "5", "model-versions"]:
                return self.delete_version(body["model_version"])
            case "POST", ["projects", "5", "import", "predictions"]:
                return self.import_predictions(body)
            case _, ["dm", *steps]:
                return self.data_manager(request.method, steps, body)
            case "GET", ["webhooks"]:
                return 200, list(self.webhooks.values())
            case "PATCH", ["webhooks", number]:
                self.webhooks[int(number)].update(body)
                return 200, self.webhooks[int(number)]
        return 404, {"detail": "Not found."}

    # ---- the Data Manager

    def data_manager(self, method, steps, body):  # noqa: PLR0911 - a table of routes
        match method, steps:
            case "GET", ["columns"]:
                return 200, {"columns": COLUMNS}
            case "GET", ["views"]:
                return 200, [self.view(number) for number in self.views]
            case "POST", ["views"]:
                number = next(self.numbers)
                self.views[number] = {"ordering": [], **body["data"]}
                return 201, self.view(number)
            case "POST", ["views", "order"]:
                first = {number: self.views[number] for number in body["ids"]}
                self.views = {**first, **self.views}
                return 200, None
            case "PATCH", ["views", number]:
                if int(number) not in self.views:
                    return 404, {"detail": "Not found."}
                kept = {name: self.views[int(number)].get(name) for name in ("filters", "ordering")}
                self.views[int(number)] = {**kept, **body["data"]}  # all other settings are replaced
                return 200, self.view(int(number))
            case "DELETE", ["views", number]:
                return (204, None) if self.views.pop(int(number), None) else (404, {})
        return 404, {"detail": "Not found."}

    def view(self, number):
        return {"id": number, "project": 5, "order": 0, "user": 1, "data": self.views[number]}

    def tabs(self):
        """Return the tasks of each tab, in its order, by title."""
        tabs = {}
        for data in self.views.values():
            query = {"filters": data.get("filters") or {"items": []}, "ordering": data["ordering"] or ["tasks:id"]}
            page = self.page({"query": json.dumps(query), "page_size": 1000})
            tabs[data["title"]] = [task["id"] for task in page["tasks"]]
        return tabs

    def score(self, task):
        scores = self.scores(self.project["model_version"]).get(task)
        return sum(scores) / len(scores) if scores else None

    def results(self, task):
        return [json.dumps(each["result"]) for each in self.predictions.values() if each["task"] == task]

    def counters(self):
        counts = [self.counts(task) for task in self.tasks]
        total = sum(count for count, _ in counts)
        return {
            "task_number": len(self.tasks),
            "total_annotations_number": total,
            "useful_annotation_number": total,
            "skipped_annotations_number": sum(skipped for _, skipped in counts),
            "ground_truth_number": 0,
        }

    def change(self, changes):
        versions = {each["model_version"] for each in self.predictions.values()}
        if changes.get("model_version", "") not in {*versions, self.project["model_version"], ""}:
            return 400, {"model_version": ["must exist"]}
        self.project.update(changes)
        return 200, self.project

    def page(self, query):
        selection = json.loads(query["query"])
        filters = selection["filters"]["items"]
        tasks = [task for task in self.tasks.values() if all(self.matches(task, each) for each in filters)]
        [ordering] = selection.get("ordering", ["tasks:id"])
        key, descending = ordering.removeprefix("-").removeprefix("tasks:"), ordering.startswith("-")
        if key == "predictions_score":
            scores, sign = {task["id"]: self.score(task["id"]) for task in tasks}, -1 if descending else 1
            tasks.sort(key=lambda task: sign * scores[task["id"]] if scores[task["id"]] is not None else math.inf)
        else:
            tasks.sort(key=lambda task: task[key], reverse=descending)
        return {"tasks": [self.to_json(task) for task in tasks[: int(query["page_size"])]], "total": len(tasks)}

    def to_json(self, task):
        total, cancelled = self.counts(task["id"])
        return {**task, "total_annotations": total, "cancelled_annotations": cancelled, "is_labeled": total > 0}

    def matches(self, task, condition):
        total, cancelled = self.counts(task["id"])
        column = condition["filter"].removeprefix("filter:tasks:")
        value = {
            "id": task["id"],
            "total_annotations": total,
            "cancelled_annotations": cancelled,
            "is_labeled": "true" if total else "false",
            "updated_at": task["updated_at"],
            "predictions_results": self.results(task["id"]),
        }[column]
        return _OPERATORS[condition["operator"]](value, condition["value"])

    def delete_version(self, version):
        if self.project["model_version"] == version:
            self.project["model_version"] = ""
        self.predictions = {n: each for n, each in self.predictions.items() if each["model_version"] != version}
        return 200, {}

    def import_predictions(self, predictions):
        if any(each["task"] not in self.tasks for each in predictions):
            return 400, {"detail": "invalid task"}
        kept = [each for each in predictions if not self.drops(each)]
        for each in kept:
            number = next(self.numbers)
            self.predictions[number] = {"id": number, **each}
        return 201, {"created": len(kept)}


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
COLUMNS = [
    {"id": "image", "type": "Image", "target": "tasks", "parent": "data", "visibility_defaults": {"labeling": True}},
    {"id": "source", "type": "Unknown", "target": "tasks", "parent": "data", "visibility_defaults": {"labeling": True}},
    {"id": "id", "type": "Number", "target": "tasks", "visibility_defaults": {"labeling": False}},
    {"id": "total_annotations", "type": "Number", "target": "tasks", "visibility_defaults": {"labeling": True}},
    {"id": "predictions_score", "type": "Number", "target": "tasks", "visibility_defaults": {"labeling": False}},
    {"id": "predictions_results", "type": "String", "target": "tasks", "visibility_defaults": {"labeling": False}},
    {"id": "annotations_results", "type": "String", "target": "tasks", "visibility_defaults": {"labeling": False}},
    {"id": "data", "type": "List", "target": "tasks", "children": ["image", "source"]},
]
"""Some columns of the Data Manager."""


@contextmanager
def studio(tasks=0):
    """Context manager for a project served at `url`."""
    state = Studio(tasks)
    with host() as server:
        server.default = state.answer
        state.url, state.requests = server.url, server.requests
        yield state
