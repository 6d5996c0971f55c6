"""A fake Label Studio in memory, over HTTP; tests/system use the real one."""

import base64
import json
import time
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

from bench.harness.hosts import Request, host, reply
from tests.trainer.studio_project import FakeProject

TOKEN = "0123456789abcdef0123456789abcdef01234567"
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
NOT_FOUND = 404, {"detail": "Not found."}


def jwt(**claims):
    """Return a JSON web token with the given claims, valid for an hour."""
    parts = ({"alg": "HS256"}, {"exp": int(time.time()) + 3600, **claims})
    head, body = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return f"{head}.{body}.c2lnbmF0dXJl"


class Aborted(Exception):
    """Answers the current request with an error status."""

    def __init__(self, status):
        self.status = status


class Studio(FakeProject):
    """The HTTP API of a Label Studio with one project."""

    def __init__(self, tasks=0):
        super().__init__(tasks)
        self.before = lambda request: None
        """Called with each request before it is answered; may raise Aborted."""

    def refuse(self, method, status, *, after=lambda request: None):
        """Answer requests of a method with an error status, after calling `after`."""

        def before(request):
            if request.method == method:
                after(request)
                raise Aborted(status)

        self.before = before

    def answer(self, handler, request: Request):
        try:
            self.before(request)
            status, content = self.route(request)
        except Aborted as aborted:
            status, content = aborted.status, {"detail": "aborted"}
        body = b"" if content is None else json.dumps(content).encode()
        reply(body, status=status, content_type="application/json")(handler, request)

    def route(self, request):  # noqa: PLR0911 - a table of routes
        """Return status and JSON of the answer."""
        url = urlsplit(request.path)
        parameters = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = json.loads(request.body) if request.body else None
        match request.method, url.path.strip("/").split("/")[1:]:
            case "GET", ["current-user", "whoami"]:
                return 200, {"id": 1, "email": "ann@example.com"}
            case "GET", ["projects", "5"]:
                return 200, {**self.project, **self.statistics()}
            case "PATCH", ["projects", "5"]:
                return self._update_project(body)
            case "GET", ["tasks"]:
                return 200, self.list_tasks(parameters)
            case "GET", ["predictions"]:
                return 200, list(self.predictions.values())
            case "DELETE", ["predictions", number]:
                return (204, None) if self.predictions.pop(int(number), None) else NOT_FOUND
            case "GET", ["projects", "5", "model-versions"]:
                versions = [each["model_version"] for each in self.predictions.values()]
                return 200, {"static": [{"model_version": v, "count": versions.count(v)} for v in set(versions)]}
            case "DELETE", ["projects", "5", "model-versions"]:
                return self.delete_version(body["model_version"])
            case "POST", ["projects", "5", "import", "predictions"]:
                return self.import_predictions(body)
            case "GET", ["webhooks"]:
                return 200, list(self.webhooks.values())
            case "PATCH", ["webhooks", number]:
                self.webhooks[int(number)].update(body)
                return 200, self.webhooks[int(number)]
            case method, ["dm", *steps]:
                return self._route_data_manager(method, steps, body)
        return NOT_FOUND

    def _route_data_manager(self, method, steps, body):  # noqa: PLR0911 - a table of routes
        match method, steps:
            case "GET", ["columns"]:
                return 200, {"columns": COLUMNS}
            case "GET", ["views"]:
                return 200, [self._view_json(number) for number in self.views]
            case "POST", ["views"]:
                number = next(self.ids)
                self.views[number] = {"ordering": [], **body["data"]}
                return 201, self._view_json(number)
            case "POST", ["views", "order"]:
                first = {number: self.views[number] for number in body["ids"]}
                self.views = {**first, **self.views}
                return 200, None
            case "PATCH", ["views", number] if int(number) in self.views:
                kept = {name: self.views[int(number)].get(name) for name in ("filters", "ordering")}
                self.views[int(number)] = {**kept, **body["data"]}  # all other settings are replaced
                return 200, self._view_json(int(number))
            case "DELETE", ["views", number] if self.views.pop(int(number), None):
                return 204, None
        return NOT_FOUND

    def _view_json(self, number):
        return {"id": number, "project": 5, "order": 0, "user": 1, "data": self.views[number]}

    def _update_project(self, changes):
        versions = {each["model_version"] for each in self.predictions.values()}
        if changes.get("model_version", "") not in {*versions, self.project["model_version"], ""}:
            return 400, {"model_version": ["must exist"]}
        self.project.update(changes)
        return 200, self.project


@contextmanager
def studio(tasks=0):
    """Context manager for a Label Studio served at `url`, whose project has so many unlabelled tasks."""
    state = Studio(tasks)
    with host() as server:
        server.default = state.answer
        state.url, state.requests = server.url, server.requests
        yield state
