"""The Flask application: routes, JSON errors, and the log line of each request."""

import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, NoReturn
from urllib.parse import quote

from flask import Blueprint, Flask, Response, g, jsonify, redirect, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.datastructures import Authorization
from werkzeug.exceptions import (
    ClientDisconnected,
    HTTPException,
    LengthRequired,
    NotFound,
    RequestEntityTooLarge,
    Unauthorized,
)
from werkzeug.wrappers import Response as BaseResponse

from contract.errors import LabelMismatch, LabelnextError, RequestError, Unavailable, UnknownModel
from contract.images.fetch import Fetcher
from contract.versions.manifest import check_version
from server.http.auth import OPEN, Guard
from server.http.concurrency_limiter import ConcurrencyLimiter, Overloaded
from server.http.origins import Origins
from server.inference.model import Model
from server.inference.models import MODEL_PREFIX
from server.observe import logs
from server.observe.metrics import CONTENT_TYPE, Metrics
from server.page import reports
from server.page.view import HEADERS, Page, render_models
from server.service import Results, Service
from server.settings import Settings

_log = logging.getLogger(__name__)

_PROBES = OPEN | {"/"}
"""Polled every few seconds, and logged at level DEBUG only."""

_SCORING = ("/predict", "/score")

_UNLIMITED = OPEN | {"/setup"}
"""Exempt from the limits on concurrency: they touch no disk, and Label Studio waits for only 1 to 3 s."""

_MAX_STATUS_LINE = 1000
"""Characters; proxies accept a few thousand."""

_NAMED_MODEL = f"{MODEL_PREFIX}<model>"

_PAGES_CACHED = 64
"""Models whose pages, with the manifests that they have read, are cached."""

_MAX_OTHER_REQUESTS = 4
"""Concurrent requests to other routes, which read the repository; its volume may hang."""


class FiniteJSON(DefaultJSONProvider):
    """JSON without NaN and Infinity: a prediction with one breaks Label Studio's task lists until it is deleted."""

    sort_keys = False

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        """Return `obj` as JSON; raise ValueError for a number that is not finite."""
        return super().dumps(obj, allow_nan=False, **kwargs)


def create_app(settings: Settings | None = None, *, fetcher: Fetcher | None = None) -> Flask:
    """Build the application and start its threads, which `close_app` stops.

    By default the settings are read from the environment, and the fetcher is created from the settings.

    Raises:
        ConfigError: if the settings are invalid or cannot be met on this machine.
    """
    settings = settings or Settings.read()
    service = Service(settings, fetcher=fetcher)
    app = Flask("labelnext", static_folder=None)
    app.json = FiniteJSON(app)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    check_head = _make_head_check(settings)
    app.extensions["labelnext"] = service
    app.extensions["labelnext.wants_body"] = partial(_wants_body, app, check_head)
    routes = _model_routes(service)
    _add_pages(app, routes, service)
    _add_reports(routes, service)
    app.register_blueprint(routes, name="by_project")
    app.register_blueprint(routes, name="by_name", url_prefix=_NAMED_MODEL)
    _add_probes(app, service)
    _add_hooks(app, service, check_head)
    app.register_error_handler(Exception, partial(_to_json, metrics=service.metrics))
    service.start()
    return app


def close_app(app: Flask) -> None:
    """Stop the application's threads."""
    app.extensions["labelnext"].close()


def _add_probes(app: Flask, service: Service) -> None:
    @app.get("/health/live")
    def live() -> tuple[dict[str, Any], int]:
        return {"live": service.live, "detail": service.fault}, 200 if service.live else 503

    @app.get("/health/ready")
    def ready() -> tuple[dict[str, Any], int]:
        return {"ready": (is_ready := service.ready), "detail": service.health()["detail"]}, 200 if is_ready else 503

    @app.get("/metrics")
    def render_metrics() -> Response:
        return Response(service.metrics.render(), content_type=CONTENT_TYPE)


def _model_routes(service: Service) -> Blueprint:
    """Return the routes that are registered twice: at the root, and below the address of each model."""
    routes = Blueprint("models", __name__)

    @routes.url_value_preprocessor
    def pop_model_name(_: str | None, values: dict[str, Any] | None) -> None:
        g.model = values.pop("model", None) if values else None

    @routes.get("/health")
    def health() -> tuple[dict[str, Any], int]:
        if version := request.args.get("version"):  # the client waits for it
            service.models.poll_soon(version)
        report = service.health(g.model, version=version)
        return report, 200 if report["status"] == "UP" else 503

    @routes.post("/setup")
    def setup() -> Response:
        return jsonify(service.setup(_read_body(), g.model))

    @routes.post("/predict")
    def predict() -> Response:
        return _results_response(service.predict(_read_body(), g.model, deadline=g.deadline))

    @routes.post("/score")
    def score() -> Response:
        return _results_response(service.score(_read_body(), g.model, deadline=g.deadline))

    @routes.post("/webhook")
    def webhook() -> Response:
        return jsonify(service.handle_webhook(_read_body(), g.model))

    @routes.get("/versions")
    def versions() -> Response:
        names = (name for model in _requested_models(service) for name in model.repository.versions())
        return jsonify(versions=sorted(names))

    return routes


def _requested_models(service: Service) -> tuple[Model, ...]:
    """Return the model named in the address, or all models if it names none."""
    return service.models.all if g.model is None else tuple(filter(None, [service.models.find(g.model)]))


def _results_response(results: Results) -> Response:
    g.log_fields = {"images": len(results.tasks), "failed": results.failed, "model_version": results.version}
    return jsonify(**results.fields, results=results.tasks)


def _read_body() -> object:
    """Parse the request's body as JSON without NaN and Infinity."""
    body = request.get_data(cache=False)
    if (request.content_length or 0) > len(body):
        raise ClientDisconnected
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as err:
        raise RequestError(f"expected a body of JSON, got {len(body)} bytes that are not; correct the body") from err


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _add_pages(app: Flask, routes: Blueprint, service: Service) -> None:
    """Add the page of a model, and the page of all models if there are several."""
    address = service.settings.label_studio_public_url or service.settings.label_studio_url
    page_of = lru_cache(_PAGES_CACHED)(partial(Page, label_studio_url=address))

    @routes.get("/")
    def show() -> Response:
        health, models, now = service.health(g.model), _requested_models(service), datetime.now(UTC)
        up, refused = health["status"] == "UP", health["refused_project"]
        if len(models) == 1:
            (model,) = models
            html = page_of(model.repository).render(
                up=up,
                detail=health["detail"] or refused,
                serving=model.engine,
                now=now,
                is_one_of_several=g.model is not None and service.models.only is None,
            )
        else:
            detail = refused if up else health["detail"]  # each model's detail is shown in its row
            html = render_models(models, up=up, detail=detail, label_studio_url=address, now=now)
        return Response(html, content_type="text/html; charset=utf-8", headers=HEADERS)

    @app.get(_NAMED_MODEL)
    def add_slash_to_model(model: str) -> BaseResponse:
        return redirect(f"./{quote(model, safe='')}/", 308)


def _add_reports(routes: Blueprint, service: Service) -> None:
    """Add the routes of versions' reports."""

    @routes.get("/report/<version>/")
    @routes.get("/report/<version>/<file>")
    def show_report(version: str, file: str = reports.INDEX) -> Response:
        candidates = (reports.read_report(model.repository, version, file) for model in _requested_models(service))
        if (report := next(filter(None, candidates), None)) is None:
            raise NotFound("no such report, or no such file in it; the page at / links to all reports")
        content, content_type = report
        return Response(content, content_type=content_type, headers=reports.HEADERS)

    @routes.get("/report/<version>")
    def add_slash(version: str) -> BaseResponse:
        if not check_version(version):  # a browser would read text before a colon as a scheme
            raise NotFound("a report's address is /report/<version>/, with a version that /versions lists")
        return redirect(f"{version}/", 308)  # relative, because a proxy may add a path prefix or TLS


def _add_hooks(app: Flask, service: Service, check_head: Callable[[], None]) -> None:
    others = ConcurrencyLimiter(
        max_requests=_MAX_OTHER_REQUESTS,
        max_waiting=_MAX_OTHER_REQUESTS,
        max_bytes=service.settings.max_body_bytes,
    )

    @app.before_request
    def begin() -> None:
        g.started = now = time.monotonic()
        received = getattr(request.environ.get("gunicorn.socket"), "request_started", now)
        g.deadline = received + service.settings.deadline_s
        g.stack = ExitStack()
        request_id = logs.accept_request_id(request.headers.get("X-Request-Id"))
        g.stack.callback(logs.request_id.reset, logs.request_id.set(request_id))
        check_head()  # before the limiter, so that unauthorised requests take no place
        if (route := _route()) is not None and route not in _UNLIMITED:
            limiter = service.limiter if route in _SCORING else others
            g.stack.enter_context(limiter.enter(request.content_length or 0, deadline=g.deadline))

    @app.after_request
    def end(response: Response) -> Response:
        route, seconds = _route() or "unmatched", time.monotonic() - g.started
        service.metrics.http_requests.labels(route, response.status_code).inc()
        service.metrics.http_request_duration.labels(route).observe(seconds)
        fields = {"route": route, "method": request.method, "status": response.status_code, **g.get("log_fields", {})}
        level = logging.DEBUG if route in _PROBES else logging.INFO
        _log.log(level, "request", extra={**fields, "seconds": round(seconds, 4)})
        response.headers["X-Request-Id"] = logs.request_id.get() or ""
        return response

    @app.teardown_request
    def release(_: BaseException | None) -> None:
        if stack := g.pop("stack", None):
            stack.close()


def _route() -> str | None:
    """Return the request's route without the prefix of a model; None if no route has its path."""
    return request.url_rule.rule.removeprefix(_NAMED_MODEL) or "/" if request.url_rule else None


def _make_head_check(settings: Settings) -> Callable[[], None]:
    """Return a function that refuses the current request if its headers do not pass, before its body is read."""
    guard = Guard(settings.basic_auth, settings.webhook_secret)
    origins = Origins(settings.allowed_hosts, (settings.label_studio_url, settings.label_studio_public_url))

    def check_head() -> None:
        route = _route()
        if route not in OPEN:
            origins.check_host(request.headers.get("Host"))
        guard.check(route, _authorization())
        if request.method == "POST" and route is not None:
            _check_length()
            origins.check_sender(request.headers)

    return check_head


def _check_length() -> None:
    if "Transfer-Encoding" in request.headers:
        raise LengthRequired("expected a Content-Length header, got a chunked body; send the body whole")
    size, limit = request.content_length or 0, request.max_content_length
    if limit is not None and size > limit:
        raise RequestEntityTooLarge(f"expected a body of at most {limit} bytes, got {size}; send fewer tasks at a time")


def _authorization() -> Authorization | None:
    try:
        return request.authorization
    except ValueError:  # not ASCII
        return None


def _wants_body(app: Flask, check_head: Callable[[], None], environ: dict[str, Any]) -> bool:
    """Return whether the application will read the body, or refuse the request by its headers."""
    with app.request_context(environ):
        if request.routing_exception is not None or request.method != "POST":
            return False
        try:
            check_head()
        except HTTPException:
            return False
        return True


def _to_json(error: Exception, *, metrics: Metrics) -> Response:
    """Return an error as a JSON response; details of server errors go to the log only."""
    status, code, detail = 500, "internal", ""
    if isinstance(error, LabelnextError):
        status, code, detail = error.status, error.code, str(error)
    elif isinstance(error, HTTPException):
        name = error.name.lower().replace(" ", "_")
        status, code, detail = error.code or 500, name, error.description or error.name
    if isinstance(error, Unavailable | Unauthorized):
        reason = "auth" if isinstance(error, Unauthorized) else getattr(error, "reason", "unavailable")
        metrics.rejected_requests.labels(reason).inc()
    if status >= 500 and not isinstance(error, Overloaded):
        expected = isinstance(error, Unavailable)
        _log.error("request failed", exc_info=None if expected else error, extra={"reason": detail} if expected else {})
        detail = "the server failed; see this request id in its log"
    response = jsonify(error=code, detail=detail, request_id=logs.request_id.get())
    response.status_code = status
    if isinstance(error, LabelMismatch | UnknownModel):  # Label Studio shows only the status line of a failure
        response.status = f"{status} {_to_status_line(detail)}"
    if isinstance(error, Overloaded):
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, HTTPException):  # such as Allow and WWW-Authenticate
        response.headers.extend((name, value) for name, value in error.get_headers() if name != "Content-Type")
    return response


def _to_status_line(text: str) -> str:
    """Return a text as printable ASCII for the status line, shortened and with other characters escaped."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return printable.encode("ascii", "backslashreplace").decode()[:_MAX_STATUS_LINE]
