"""The routes, and how errors and logs look over HTTP. Nothing is computed here."""

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
from server.http.projects import PREFIX
from server.inference.model import Model
from server.observe import logs, metrics
from server.page import reports
from server.page.view import HEADERS, Page, render_models
from server.service import Scored, Service
from server.settings import Settings

_log = logging.getLogger(__name__)

_PROBES = OPEN | {"/"}
"""Asked every few seconds by machines; they would fill the log."""

_SCORING = ("/predict", "/score")
"""What takes long, and waits for a place."""

_AT_ONCE = OPEN | {"/setup"}
"""Answered whatever else goes on: they touch no disk, and Label Studio waits for 1 to 3 s."""

_STATUS_LINE = 1000
"""Characters; proxies take a few thousand."""

_BY_NAME = f"{PREFIX}<model>"
"""What stands before the routes of a model that is named."""

_PAGES_REMEMBERED = 64
"""Models of whose versions it is remembered what was read."""

_PAGES = 4
"""Other requests that are handled at a time: they read the repository, whose volume may hang."""


class FiniteJSON(DefaultJSONProvider):
    """JSON without NaN and Infinity: one in a prediction breaks Label Studio's task lists until it is deleted."""

    sort_keys = False

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        """Return the JSON; ValueError for a number that is not finite."""
        return super().dumps(obj, allow_nan=False, **kwargs)


def create_app(settings: Settings | None = None, *, fetcher: Fetcher | None = None) -> Flask:
    """Build the application and start its threads; `close_app` ends them.

    `settings` are by default those of the environment, `fetcher` the one that these ask for.

    Raises:
        ConfigError: if the settings are wrong or cannot be met on this machine.
    """
    settings = settings or Settings.read()
    service = Service(settings, fetcher=fetcher)
    app = Flask("labelnext", static_folder=None)
    app.json = FiniteJSON(app)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    check_head = _make_check(settings)
    app.extensions["labelnext"] = service
    app.extensions["labelnext.wants_body"] = partial(_wants_body, app, check_head)
    routes = _routes_of_models(service)
    _add_pages(app, routes, service)
    app.register_blueprint(routes, name="by_project")
    app.register_blueprint(routes, name="by_name", url_prefix=_BY_NAME)
    _add_probes(app, service)
    _add_hooks(app, service, check_head)
    app.register_error_handler(Exception, partial(_to_json, counted=service.metrics))
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
        return Response(service.metrics.render(), content_type=metrics.CONTENT_TYPE)


def _routes_of_models(service: Service) -> Blueprint:
    """Return what is there twice: for the model whose name stands in the address, and for the project that asks."""
    routes = Blueprint("models", __name__)

    @routes.url_value_preprocessor
    def take_name(_: str | None, values: dict[str, Any] | None) -> None:
        g.model = values.pop("model", None) if values else None

    @routes.get("/health")
    def health() -> tuple[dict[str, Any], int]:
        if wanted := request.args.get("version"):  # of who waits for it
            service.models.look_soon(wanted)
        report = service.health(g.model, version=wanted)
        return report, 200 if report["status"] == "UP" else 503

    @routes.post("/setup")
    def setup() -> Response:
        return jsonify(service.setup(_read_body(), g.model))

    @routes.post("/predict")
    def predict() -> Response:
        return _answer(service.predict(_read_body(), g.model, deadline=g.deadline))

    @routes.post("/score")
    def score() -> Response:
        return _answer(service.score(_read_body(), g.model, deadline=g.deadline))

    @routes.post("/webhook")
    def webhook() -> Response:
        return jsonify(service.notice(_read_body(), g.model))

    @routes.get("/versions")
    def versions() -> Response:
        return jsonify(versions=sorted(name for each in _asked_for(service) for name in each.repository.versions()))

    return routes


def _asked_for(service: Service) -> tuple[Model, ...]:
    """The model whose name stands in the address; all where none does."""
    return service.models.all if g.model is None else tuple(filter(None, [service.models.find(g.model)]))


def _answer(scored: Scored) -> Response:
    """Return the answer, and have the request's line in the log say what came of it."""
    g.facts = {"images": len(scored.results), "failed": scored.failed, "model_version": scored.version}
    return jsonify(**scored.about, results=scored.results)


def _read_body() -> object:
    """Return the request's body, which has come in whole, as JSON, in which there is no NaN and no Infinity."""
    body = request.get_data(cache=False)
    if (request.content_length or 0) > len(body):
        raise ClientDisconnected
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as err:
        raise RequestError(f"the body must be JSON, got {len(body)} bytes that are not") from err


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _add_pages(app: Flask, routes: Blueprint, service: Service) -> None:
    """Add the page of one model, that of all where there are several and none is named, and the reports."""
    address = service.settings.label_studio_public_url or service.settings.label_studio_url
    page_of = lru_cache(_PAGES_REMEMBERED)(partial(Page, label_studio_url=address))

    @routes.get("/")
    def show() -> Response:
        health, models, now = service.health(g.model), _asked_for(service), datetime.now(UTC)
        up, refused = health["status"] == "UP", health["refused_project"]
        if len(models) == 1:
            (model,) = models
            html = page_of(model.repository).render(
                up=up,
                detail=health["detail"] or refused,
                serving=model.engine,
                now=now,
                is_one_of_several=g.model is not None and service.models.alone is None,
            )
        else:
            detail = refused if up else health["detail"]  # what models say stands beside them
            html = render_models(models, up=up, detail=detail, label_studio_url=address, now=now)
        return Response(html, content_type="text/html; charset=utf-8", headers=HEADERS)

    @app.get(_BY_NAME)
    def add_slash_to_model(model: str) -> BaseResponse:
        return redirect(f"./{quote(model, safe='')}/", 308)

    @routes.get("/report/<version>/")
    @routes.get("/report/<version>/<file>")
    def show_report(version: str, file: str = reports.INDEX) -> Response:
        of_models = (reports.read_report(model.repository, version, file) for model in _asked_for(service))
        if (found := next(filter(None, of_models), None)) is None:
            raise NotFound("there is no such report, or no such file in it; the page at / links to those there are")
        content, content_type = found
        return Response(content, content_type=content_type, headers=reports.HEADERS)

    @routes.get("/report/<version>")
    def add_slash(version: str) -> BaseResponse:
        if not check_version(version):  # what stands before a colon would be taken for a scheme
            raise NotFound("a report's address is /report/<version>/, where a version is named as /versions names it")
        return redirect(f"{version}/", 308)  # relative, for a proxy may have put a path or TLS in front


def _add_hooks(app: Flask, service: Service, check_head: Callable[[], None]) -> None:
    pages = ConcurrencyLimiter(most_requests=_PAGES, most_waiting=_PAGES, most_bytes=service.settings.max_body_bytes)

    @app.before_request
    def begin() -> None:
        g.started = now = time.monotonic()
        began = getattr(request.environ.get("gunicorn.socket"), "began", now)  # when its first byte came in
        g.deadline = began + service.settings.deadline_s
        g.held = ExitStack()
        request_id = logs.accept_request_id(request.headers.get("X-Request-Id"))
        g.held.callback(logs.request_id.reset, logs.request_id.set(request_id))
        check_head()  # before there is a place for the request: strangers get none
        if (route := _route()) is not None and route not in _AT_ONCE:
            limiter = service.limiter if route in _SCORING else pages
            g.held.enter_context(limiter.enter(request.content_length or 0, deadline=g.deadline))

    @app.after_request
    def end(response: Response) -> Response:
        route, seconds = _route() or "unmatched", time.monotonic() - g.started
        service.metrics.http_requests.labels(route, response.status_code).inc()
        service.metrics.http_request_duration.labels(route).observe(seconds)
        facts = {"route": route, "method": request.method, "status": response.status_code, **g.get("facts", {})}
        level = logging.DEBUG if route in _PROBES else logging.INFO
        _log.log(level, "request", extra={**facts, "seconds": round(seconds, 4)})
        response.headers["X-Request-Id"] = logs.request_id.get() or ""
        return response

    @app.teardown_request
    def leave(_: BaseException | None) -> None:
        if held := g.pop("held", None):
            held.close()


def _route() -> str | None:
    """The request's route, without a model's name before it; None where there is none by its path."""
    return request.url_rule.rule.removeprefix(_BY_NAME) or "/" if request.url_rule else None


def _make_check(settings: Settings) -> Callable[[], None]:
    """Return what refuses a request by its head."""
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
        raise LengthRequired("the request must say how long its body is, in Content-Length, and not come in chunks")
    size, most = request.content_length or 0, request.max_content_length
    if most is not None and size > most:
        raise RequestEntityTooLarge(f"the body has {size} bytes, at most {most} are read")


def _authorization() -> Authorization | None:
    try:
        return request.authorization
    except ValueError:  # not ASCII, as no client sends them
        return None


def _wants_body(app: Flask, check_head: Callable[[], None], environ: dict[str, Any]) -> bool:
    """Whether a request's body will be read: what the application refuses by its head alone is not waited for."""
    with app.request_context(environ):
        if request.routing_exception is not None or request.method != "POST":
            return False
        try:
            check_head()
        except HTTPException:
            return False
        return True


def _to_json(error: Exception, *, counted: metrics.Metrics) -> Response:
    """Turn any error into JSON; what the server did wrong is told to its log only."""
    status, code, detail = 500, "internal", ""
    if isinstance(error, LabelnextError):
        status, code, detail = error.status, error.code, str(error)
    elif isinstance(error, HTTPException):
        name = error.name.lower().replace(" ", "_")
        status, code, detail = error.code or 500, name, error.description or error.name
    if isinstance(error, Unavailable | Unauthorized):  # not refused for what it asks
        reason = "auth" if isinstance(error, Unauthorized) else getattr(error, "reason", "unavailable")
        counted.rejected_requests.labels(reason).inc()
    if status >= 500 and not isinstance(error, Overloaded):
        foreseen = isinstance(error, Unavailable)
        _log.error("request failed", exc_info=None if foreseen else error, extra={"reason": detail} if foreseen else {})
        detail = "the server could not answer; its log says why, under this request id"
    response = jsonify(error=code, detail=detail, request_id=logs.request_id.get())
    response.status_code = status
    if isinstance(error, LabelMismatch | UnknownModel):  # of a failure, Label Studio shows this line alone
        response.status = f"{status} {_in_one_line(detail)}"
    if isinstance(error, Overloaded):
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, HTTPException):  # such as what is allowed instead, or how to authenticate
        response.headers.extend((name, value) for name, value in error.get_headers() if name != "Content-Type")
    return response


def _in_one_line(text: str) -> str:
    """Return a text as a status line can hold it: so many characters of printable ASCII, any other escaped."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return printable.encode("ascii", "backslashreplace").decode()[:_STATUS_LINE]
