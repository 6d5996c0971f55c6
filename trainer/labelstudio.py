"""What the trainer asks of Label Studio, through its own client library; no other file knows that library.

The library takes a second to import and is imported when it is first needed. Its errors hold whole answers, headers
included; here they become one line that says what was expected and what to do. Tasks and predictions are read as the
JSON that they come in: the library's own types take longer to make than Label Studio takes to answer.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from contract.errors import ConfigError

if TYPE_CHECKING:
    from label_studio_sdk import LabelStudio

UNCERTAINTY_SAMPLING: Final = "Uncertainty sampling"
"""Serves the task with the lowest score of the project's model version first."""

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 60.0
_WRITE_TIMEOUT_S: Final = 3600.0
"""Label Studio stores 10,000 predictions in 12 s on SQLite, and takes 75 s to delete them."""
_PAGE_TASKS: Final = 1000
_ANNOTATED_PAGE_TASKS: Final = 500
_PASSES: Final = {429, 502, 503, 504}
"""Statuses of a Label Studio that is being restarted, or of the proxy before it, and of one that has too much to do."""
_AUTHORIZATION: Final = "Authorization"
_BEARER: Final = "Bearer "
_FORMER: Final = "X-Labelnext-Former-Authorization"
"""Where a webhook keeps what it carried before our token, rather than anybody's disk."""
_FIRST: Final = 0
"""Below every number of a task."""


class Unreachable(ConfigError):
    """Got no answer from Label Studio, or one that says that the fault is its own: it may be there later."""


class Refused(ConfigError):
    """Was told by Label Studio that what was sent is not acceptable."""


@dataclass(frozen=True, slots=True)
class Project:
    """What the trainer needs to know of a project."""

    project_id: int
    title: str
    label_config: str
    """The labelling config, in XML."""
    model_version: str
    """Whose predictions are shown and sorted by; empty if nobody has chosen."""
    sampling: str = ""
    """How the label stream chooses the next task."""


@dataclass(frozen=True, slots=True)
class PoolTask:
    """A task that waits for a label."""

    id: int
    data: Mapping[str, Any]
    """As it was imported: references to cloud storage are not resolved."""


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


@dataclass(frozen=True, slots=True)
class State:
    """How a project stands; equal to an earlier one if nothing has happened that a trainer cares for."""

    tasks: int
    total_annotations: int
    """Annotations that were not skipped, those of ground truth included."""
    useful_annotations: int
    """Those that are not ground truth."""
    skipped_annotations: int
    ground_truth: int
    newest_updated_at: str
    """When a task with annotations last changed, as Label Studio writes it; empty where there is none."""
    label_config: str
    """The sha256 of the labelling config."""


@dataclass(frozen=True, slots=True)
class Outages:
    """How long to wait for a Label Studio that does not answer, or says that it cannot now, in seconds."""

    longest_s: float = 180.0
    """In all, for one request."""
    pause_s: float = 1.0
    """Before the second attempt; each pause is twice the one before it."""
    longest_pause_s: float = 15.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


_outages: ContextVar[Outages | None] = ContextVar("outages", default=None)


def connect(url: str, token: str) -> "LabelStudio":
    """A client that Label Studio has accepted; the token is a personal access token or a legacy one.

    Raises:
        ConfigError: if the host does not answer or refuses the token.
    """
    import httpx
    from label_studio_sdk import LabelStudio

    limits = httpx.Limits(max_keepalive_connections=0)  # the library closes none, so none is kept
    transport = httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True, limits=limits)
    base_url = url.rstrip("/") + "/"  # without the slash the library loses a path when it exchanges tokens
    with _explained(url):
        client = LabelStudio(base_url=base_url, api_key=token, timeout=_TIMEOUT_S, httpx_client=transport)
        _outlast(client.users.whoami)
    return client


@contextmanager
def outlasting(outages: "Outages | None" = None) -> Iterator[None]:
    """In the block, have what may be sent twice wait for a Label Studio that is restarted or has too much to do.

    Imports of predictions are none of it: whoever sends these looks what has become of them.
    """
    before = _outages.set(outages or Outages())
    try:
        yield
    finally:
        _outages.reset(before)


# ---- reading


def read_project(client: "LabelStudio", project_id: int) -> Project:
    """The project's title, labelling config, model version and sampling.

    Raises:
        ConfigError: if there is no such project, or Label Studio does not answer.
    """

    def read(project: Mapping[str, Any]) -> Project:
        fields = ("title", "label_config", "model_version", "sampling")
        return Project(project_id, **{name: project[name] or "" for name in fields})

    return _get(client, f"api/projects/{project_id}/", read, what=f"project {project_id}")


def project_state(client: "LabelStudio", project_id: int) -> State:
    """Look at a project in two small requests; annotations that were edited show in `newest_updated_at` alone.

    Raises:
        ConfigError: if there is no such project, or Label Studio does not answer.
    """
    query = {"filters": _all_of(_ANNOTATED), "ordering": ["-tasks:updated_at"]}
    newest = [task["updated_at"] for task in _list_tasks(client, project_id, query, page_size=1).tasks]

    def read(project: Mapping[str, Any]) -> State:
        return State(
            tasks=int(project["task_number"]),
            total_annotations=int(project["total_annotations_number"]),
            useful_annotations=int(project["useful_annotation_number"]),
            skipped_annotations=int(project["skipped_annotations_number"]),
            ground_truth=int(project["ground_truth_number"]),
            newest_updated_at=newest[0] if newest else "",
            label_config=hashlib.sha256((project["label_config"] or "").encode()).hexdigest(),
        )

    return _get(client, f"api/projects/{project_id}/", read, what=f"project {project_id}")


def count_labels_since(client: "LabelStudio", project_id: int, moment: str, *, until: str) -> tuple[int, int]:
    """How many annotations were made after a moment, and how many of the others were edited; deleted ones do not show.

    A page of tasks is asked for, and one more for each 500 that have changed. A task's own time is later than its
    annotations' whenever somebody opens it and a prediction is fetched.

    Args:
        client: from `connect`.
        project_id: the number in the project's address.
        moment: as Label Studio writes it.
        until: the last moment that counts, so that what is counted is what the project's state of that moment says.

    Raises:
        ConfigError: if there is no such project, or Label Studio does not answer.
    """
    later = _filter("updated_at", "greater", moment, "Datetime")
    made = edited = 0
    for task in _pages(client, project_id, [_ANNOTATED, later], page_size=_ANNOTATED_PAGE_TASKS, fields="all"):
        for each in task["annotations"] or []:
            if not each["was_cancelled"] and moment < str(each["updated_at"]) <= until:
                made += str(each["created_at"]) > moment
                edited += str(each["created_at"]) <= moment
    return made, edited


def annotated_tasks(client: "LabelStudio", project_id: int) -> Iterator[Mapping[str, Any]]:
    """Every task that somebody labelled or skipped, as `id`, `data` and `annotations`.

    In the order of their numbers, those that were only skipped behind all others.

    Raises:
        ConfigError: if there is no such project, or Label Studio does not answer.
    """
    for filters in ([_ANNOTATED], [_NOT_ANNOTATED, _SKIPPED]):
        for task in _pages(client, project_id, filters, page_size=_ANNOTATED_PAGE_TASKS, fields="all"):
            yield {"id": task["id"], "data": task["data"], "annotations": task["annotations"] or []}


def unlabelled_tasks(client: "LabelStudio", project_id: int) -> Iterator[PoolTask]:
    """Every task that Label Studio would still have labelled and that nobody has: in the order of their numbers.

    Among them are those that somebody skipped, unless the project says that a skipped task is done with.

    Raises:
        ConfigError: if there is no such project, or Label Studio does not answer.
    """
    for task in _pages(client, project_id, [_NOT_ANNOTATED, _NOT_DONE], page_size=_PAGE_TASKS, resolve_uri="false"):
        yield PoolTask(task["id"], task["data"])


def count_unlabelled(client: "LabelStudio", project_id: int) -> int:
    """How many tasks `unlabelled_tasks` would give, in one small request.

    Raises:
        ConfigError: if there is no such project, or Label Studio does not answer.
    """
    query = {"filters": _all_of(_NOT_ANNOTATED, _NOT_DONE)}
    return _list_tasks(client, project_id, query, page_size=1).total


# ---- predictions


def count_predictions(client: "LabelStudio", project_id: int) -> dict[str, int]:
    """How many predictions of each model version the project holds.

    Raises:
        ConfigError: if there is no such project, or Label Studio does not answer.
    """
    return _get(
        client,
        f"api/projects/{project_id}/model-versions/",
        lambda reply: {str(each["model_version"]): int(each["count"]) for each in reply["static"]},
        what=f"project {project_id}",
        extended="true",
    )


def list_predictions(
    client: "LabelStudio", project_id: int, version: str, *, results_of: Collection[int] = ()
) -> list[StoredPrediction]:
    """Every prediction of one model version, the oldest first.

    Args:
        client: from `connect`.
        project_id: the number in the project's address.
        version: what they are stamped with.
        results_of: the tasks whose predictions come with their regions.

    Raises:
        ConfigError: if there is no such project, or Label Studio does not answer.
    """
    with _explained(_url_of(client), what=f"project {project_id}"):
        reply = _send(client, "GET", "api/predictions/", params={"project": project_id}, timeout_s=_WRITE_TIMEOUT_S)
        # There is no asking for one version or for less than everything: what is not needed goes while it is parsed.
        found = json.loads(reply, object_hook=partial(_to_prediction, frozenset(results_of)))
    kept = (each for each in found if isinstance(each, StoredPrediction) and each.model_version == version)
    return sorted(kept, key=lambda each: each.id)


def _to_prediction(results_of: Collection[int], document: dict[str, Any]) -> StoredPrediction | dict[str, Any]:
    """What is inside of a prediction comes here first, and goes with it unless it is asked for."""
    if not {"id", "task", "model_version"} <= document.keys():
        return document
    result = document["result"] if document["task"] in results_of else ()
    return StoredPrediction(
        id=document["id"],
        task=document["task"],
        model_version=str(document["model_version"]),
        score=document["score"],
        result=result,
        blank=not document.get("result"),
    )


def import_predictions(client: "LabelStudio", project_id: int, predictions: Sequence[Mapping[str, Any]]) -> int:
    """Store predictions, and return how many Label Studio took: it drops those it finds invalid without a word.

    Args:
        client: from `connect`.
        project_id: the number in the project's address.
        predictions: each with `task`, `model_version`, `score` in [0, 1] and `result`.

    Raises:
        Refused: if a task is not in the project; nothing is stored then.
        Unreachable: if it is not known whether they are or will be stored.
        ConfigError: if there is no such project.
    """
    with _explained(_url_of(client), what=f"project {project_id}"):
        reply = _send(
            client,
            "POST",
            f"api/projects/{project_id}/import/predictions",
            body=predictions,
            timeout_s=_WRITE_TIMEOUT_S,
            retries=0,
        )
        return int(json.loads(reply)["created"])


def delete_prediction(client: "LabelStudio", prediction_id: int) -> None:
    """Remove one prediction; one that is gone already is none the worse.

    Raises:
        ConfigError: if Label Studio does not answer or refuses.
    """
    with _explained(_url_of(client), what=f"prediction {prediction_id}"):
        _send(client, "DELETE", f"api/predictions/{prediction_id}/", accepted=(404,))


def delete_predictions(client: "LabelStudio", project_id: int, version: str) -> None:
    """Remove all predictions of one model version, which must not be the project's: Label Studio would unset that.

    Raises:
        ConfigError: if Label Studio does not answer or refuses.
    """
    with _explained(_url_of(client), what=f"project {project_id}"):
        path = f"api/projects/{project_id}/model-versions/"
        _send(client, "DELETE", path, body={"model_version": version}, timeout_s=_WRITE_TIMEOUT_S, retries=0)


def switch_model_version(
    client: "LabelStudio", project_id: int, version: str, *, sampling: str | None = UNCERTAINTY_SAMPLING
) -> None:
    """Make a project show, sort by and sample by the predictions of one version.

    Args:
        client: from `connect`.
        project_id: the number in the project's address.
        version: of which at least one prediction must be in the project; empty for none.
        sampling: the project's task sampling; None leaves it as it is.

    Raises:
        ConfigError: if Label Studio has no prediction of that version, or does not answer.
    """
    changes = {"model_version": version} | ({"sampling": sampling} if sampling is not None else {})
    with _explained(_url_of(client), what=f"project {project_id}", version=version):
        _send(client, "PATCH", f"api/projects/{project_id}/", body=changes)


# ---- webhooks


def set_webhook_token(client: "LabelStudio", project_id: int, url_prefixes: Sequence[str], token: str) -> int:
    """Have a project's webhooks for these addresses carry a token, and return how many had to be changed.

    What else they carried as Authorization stays with them, under another name, for `clear_webhook_token`.

    Args:
        client: from `connect`.
        project_id: the number in the project's address.
        url_prefixes: such as a server's URL; webhooks for other addresses are left alone.
        token: what is sent as `Authorization: Bearer ...`; other headers stay.

    Raises:
        ConfigError: if Label Studio does not answer or refuses.
    """

    def change(headers: Mapping[str, str]) -> Mapping[str, str]:
        before = headers.get(_AUTHORIZATION, "")
        kept = {_FORMER: before} if before and not before.startswith(_BEARER) else {}
        return {**headers, **kept, _AUTHORIZATION: _BEARER + token}

    return _change_webhooks(client, project_id, url_prefixes, change)


def clear_webhook_token(client: "LabelStudio", project_id: int, url_prefixes: Sequence[str]) -> int:
    """Have webhooks carry what they did before `set_webhook_token`, and return how many had to be changed.

    Raises:
        ConfigError: if Label Studio does not answer or refuses.
    """

    def change(headers: Mapping[str, str]) -> Mapping[str, str]:
        if not headers.get(_AUTHORIZATION, "").startswith(_BEARER):
            return headers
        former = {_AUTHORIZATION: headers[_FORMER]} if _FORMER in headers else {}
        return {name: value for name, value in headers.items() if name not in {_AUTHORIZATION, _FORMER}} | former

    return _change_webhooks(client, project_id, url_prefixes, change)


def _change_webhooks(
    client: "LabelStudio",
    project_id: int,
    url_prefixes: Sequence[str],
    change: Callable[[Mapping[str, str]], Mapping[str, str]],
) -> int:
    stems = tuple(prefix.rstrip("/") + "/" for prefix in url_prefixes)
    changed = 0

    def read(hooks: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, str]]:
        ours = (hook for hook in hooks if (hook["url"].rstrip("/") + "/").startswith(stems))
        return {int(hook["id"]): hook["headers"] or {} for hook in ours}

    for number, headers in _get(client, "api/webhooks/", read, what="webhooks", project=project_id).items():
        if (wanted := change(headers)) == headers:
            continue
        with _explained(_url_of(client), what=f"webhook {number}"):
            _send(client, "PATCH", f"api/webhooks/{number}/", body={"headers": wanted})
        changed += 1
    return changed


# ---- pages of tasks


@dataclass(frozen=True, slots=True)
class _Page:
    tasks: list[dict[str, Any]]
    total: int
    """How many tasks there are from here on."""


def _filter(column: str, operator: str, value: float | str, kind: str = "Number") -> dict[str, object]:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


_ANNOTATED: Final = _filter("total_annotations", "greater", 0)
_NOT_ANNOTATED: Final = _filter("total_annotations", "equal", 0)
_SKIPPED: Final = _filter("cancelled_annotations", "greater", 0)
_NOT_DONE: Final = _filter("is_labeled", "equal", "false", "Boolean")
"""What the label stream itself goes by."""


def _all_of(*filters: Mapping[str, object]) -> dict[str, object]:
    return {"conjunction": "and", "items": filters}


def _pages(
    client: "LabelStudio",
    project_id: int,
    filters: Sequence[Mapping[str, object]],
    *,
    page_size: int,
    **parameters: str,
) -> Iterator[dict[str, Any]]:
    """Tasks in the order of their numbers, each page from the last number on.

    Numbered pages would shift, and tasks slip through, whenever somebody labels one while they are read.
    """
    last, remaining = _FIRST, True
    while remaining:
        query = {"filters": _all_of(*filters, _filter("id", "greater", last)), "ordering": ["tasks:id"]}
        page = _list_tasks(client, project_id, query, page_size=page_size, **parameters)
        yield from page.tasks
        remaining = 0 < len(page.tasks) < page.total
        last = page.tasks[-1]["id"] if remaining else last


def _list_tasks(
    client: "LabelStudio", project_id: int, query: Mapping[str, object], *, page_size: int, **parameters: str
) -> _Page:
    parameters = {"fields": "task_only", "query": json.dumps(query), **parameters}
    return _get(
        client,
        "api/tasks/",
        lambda page: _Page([{**task, "id": int(task["id"])} for task in page["tasks"]], int(page["total"])),
        what=f"project {project_id}",
        project=project_id,
        page_size=page_size,
        **parameters,
    )


# ---- requests


def _get(client: "LabelStudio", path: str, read: Callable[[Any], _T], *, what: str, **parameters: str | int) -> _T:
    """Have `read` make what is wanted of the answer's JSON."""
    with _explained(_url_of(client), what=what):
        return read(json.loads(_send(client, "GET", path, params=parameters)))


def _send(
    client: "LabelStudio",
    method: str,
    path: str,
    *,
    params: Mapping[str, str | int] | None = None,
    body: object = None,
    timeout_s: float = _TIMEOUT_S,
    retries: int = 2,
    accepted: Sequence[int] = (),
) -> bytes:
    """Send a request with the library's token, and return the answer's body.

    With no `retries` it is sent once, come what may.
    """
    send = partial(
        _send_now,
        client,
        method,
        path,
        params=params,
        body=body,
        timeout_s=timeout_s,
        retries=retries,
        accepted=accepted,
    )
    return _outlast(send) if retries else send()


def _outlast(send: Callable[[], _T]) -> _T:
    """Send until Label Studio answers, or the outage has lasted for longer than it is to be waited for."""
    import httpx
    from label_studio_sdk.core.api_error import ApiError

    outages = _outages.get()
    if outages is None:
        return send()
    started, pause_s = outages.clock(), outages.pause_s
    while True:
        try:
            return send()
        except (httpx.TransportError, ApiError) as err:
            if isinstance(err, ApiError) and err.status_code not in _PASSES:
                raise
            if outages.clock() + pause_s - started > outages.longest_s:
                raise
            reason = f"answers {err.status_code}" if isinstance(err, ApiError) else f"is away ({type(err).__name__})"
        _log.warning("Label Studio %s; asking again in %.0f s", reason, pause_s)
        outages.sleep(pause_s)
        pause_s = min(2 * pause_s, outages.longest_pause_s)


def _send_now(
    client: "LabelStudio",
    method: str,
    path: str,
    *,
    params: Mapping[str, str | int] | None,
    body: object,
    timeout_s: float,
    retries: int,
    accepted: Sequence[int],
) -> bytes:
    from label_studio_sdk.core.api_error import ApiError

    content = {} if body is None else {"content": json.dumps(body).encode()}
    response = client._client_wrapper.httpx_client.request(
        path,
        method=method,
        params=dict(params or {}),
        headers={"Content-Type": "application/json"},
        request_options={"timeout_in_seconds": timeout_s, "max_retries": retries},
        **content,
    )
    if response.is_success or response.status_code in accepted:
        return bytes(response.content)
    raise ApiError(status_code=response.status_code, body=response.text)


def _url_of(client: "LabelStudio") -> str:
    return str(client._client_wrapper.get_base_url()).rstrip("/")


@contextmanager
def _explained(url: str, *, what: str = "", version: str = "") -> Iterator[None]:
    """Turn whatever the library and its HTTP client raise into one ConfigError."""
    import httpx
    from label_studio_sdk.core.api_error import ApiError

    try:
        yield
    except ApiError as err:
        raise _explain(err.status_code, url, what, version) from err
    except (httpx.HTTPError, httpx.InvalidURL) as err:
        raise Unreachable(
            f"expected Label Studio at {url}, which cannot be reached ({type(err).__name__}); "
            "check LABELNEXT_LABEL_STUDIO_URL and that it is running"
        ) from err
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as err:  # an answer that is no JSON, or not what was asked for
        raise ConfigError(
            f"expected Label Studio at {url}, got an answer that is not its own ({type(err).__name__}); "
            "check LABELNEXT_LABEL_STUDIO_URL"
        ) from err


def _explain(status: int | None, url: str, what: str, version: str) -> ConfigError:
    if status in {401, 403}:
        return ConfigError(
            f"Label Studio at {url} refuses the token ({status}); set LABELNEXT_LABEL_STUDIO_TOKEN to a personal "
            "access token from the account settings (legacy tokens work only where the organisation allows them)"
        )
    if status == 404:
        return ConfigError(
            f"Label Studio at {url} has no {what or 'such page'} for this token; check the number and the token's user"
        )
    if status == 400 and version:
        return Refused(
            f"Label Studio at {url} refuses model version {version!r} for {what}: no prediction in the project has it; "
            "retrieve or import predictions of that version first"
        )
    passes = status is None or status in _PASSES or status >= 500
    kind = Refused if status == 400 else Unreachable if passes else ConfigError
    return kind(f"Label Studio at {url} answered {status} when asked for {what or 'the user'}; look into its log")
