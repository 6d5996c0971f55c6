"""Client of the inference server, or of a proxy in front of several: waits for a version, and has tasks scored."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Final, NamedTuple

import urllib3

from contract.errors import ConfigError, Unavailable
from trainer.labelstudio.tasks import PoolTask
from trainer.scoring.scores import Failure, Score, parse_score
from trainer.scoring.task_batches import TaskBatches

_log = logging.getLogger(__name__)

_CONCURRENT_REQUESTS: Final = 8
"""Enough to keep a server, or a few behind a proxy, busy despite network latency."""
_MAX_ATTEMPTS: Final = 5
"""Maximum attempts of a request that the server fails to answer."""
_READ_TIMEOUT_S: Final = 150.0
"""Longer than the server's own LABELNEXT_DEADLINE_S, 90 by default."""
_MAX_PAUSE_S: Final = 15.0
_EXPIRED: Final = "expired"

Outcome = Score | Failure


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """The fields of a request besides its tasks."""

    project: int
    label_config: str
    version: str
    embeddings: bool = False
    passes: bool = False


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts and pauses in seconds."""

    reach_s: float = 10.0
    """For the server to become reachable at the start."""
    load_s: float = 180.0
    """For the server to load the version at the start."""
    fail_s: float = 180.0
    """Since the last successful reply."""
    poll_s: float = 0.25
    """Between two health checks at the start."""
    pause_s: float = 1.0
    """Before the second attempt; doubled with each attempt."""


class Server:
    """A server, or a proxy in front of several.

    The URL is such as http://localhost:9090, and may have a path; `basic_auth` is `user:password`.
    """

    def __init__(self, url: str, basic_auth: str | None = None, *, timeouts: Timeouts | None = None) -> None:
        self.url = url.rstrip("/")
        self._timeouts = timeouts or Timeouts()
        login = urllib3.make_headers(basic_auth=basic_auth) if basic_auth else {}
        self._http = urllib3.PoolManager(
            maxsize=_CONCURRENT_REQUESTS,
            retries=False,
            timeout=urllib3.Timeout(connect=5.0, read=_READ_TIMEOUT_S),
            headers={"Content-Type": "application/json", **login},
        )
        self._last_reply_at = time.monotonic()

    def wait_for(self, version: str) -> None:
        """Wait until the server serves a version; raises Unavailable if it does not in time."""
        started = time.monotonic()
        while (health := self._check_health(version)).version != version:
            allowed_s = self._timeouts.load_s if health.reached else self._timeouts.reach_s
            if time.monotonic() - started >= allowed_s:
                raise Unavailable(_explain(self.url, version, health))
            time.sleep(self._timeouts.poll_s)

    def _check_health(self, version: str) -> "_Health":
        """Request the served version; the parameter makes the server look for a new version at once."""
        try:
            reply = self._http.request(
                "GET", f"{self.url}/health", fields={"version": version}, timeout=5.0, redirect=False
            )
            document = json.loads(reply.data)
            return _Health(True, document["model_version"], document.get("detail") or "")
        except urllib3.exceptions.HTTPError as err:
            return _Health(False, None, type(err).__name__)
        except (ValueError, LookupError, TypeError, AttributeError):
            return _Health(False, None, f"its reply ({reply.status}) is not that of an inference server")

    def score(
        self, tasks: Sequence[PoolTask], request: ScoreRequest, *, outdated: Callable[[], bool] = lambda: False
    ) -> Iterator[list[Outcome]]:
        """Score tasks by concurrent requests, and yield the replies as they arrive: one outcome per task.

        `outdated` returns whether the requested version has been replaced, so that no server will serve it again.

        Raises:
            ConfigError: if the server refuses the request.
            Unavailable: if it does not answer for too long.
        """
        batches, stopped = TaskBatches(tasks), threading.Event()
        replies = SimpleQueue[list[Outcome] | Exception]()
        self._last_reply_at = time.monotonic()

        def work() -> None:
            try:
                while (batch := batches.take()) and not stopped.is_set():
                    started = time.monotonic()
                    outcomes = self._request_batch(batch, request, outdated, stopped=stopped)
                    late = {each.task for each in outcomes if isinstance(each, Failure) and each.code == _EXPIRED}
                    late -= batches.record(batch, late, seconds=time.monotonic() - started)
                    replies.put([outcome for outcome in outcomes if outcome.task not in late])
            except Exception as err:  # passed to the thread that waits for replies
                stopped.set()
                replies.put(err)

        for _ in range(min(len(tasks), _CONCURRENT_REQUESTS)):
            threading.Thread(target=work, name="scores", daemon=True).start()
        missing = len(tasks)
        try:
            while missing:
                if isinstance(reply := replies.get(), Exception):
                    raise reply
                missing -= len(reply)
                yield reply
        finally:
            stopped.set()

    def _request_batch(
        self,
        tasks: Sequence[PoolTask],
        request: ScoreRequest,
        outdated: Callable[[], bool],
        *,
        stopped: threading.Event,
    ) -> list[Outcome]:
        """Request a batch until it is answered; return nothing if stopped before."""
        attempt, failures = 1, 0
        while not stopped.is_set():
            try:
                outcomes = self._post(request, tasks)
                self._last_reply_at = time.monotonic()
                return outcomes
            except _RetryableError as err:
                self._check_retry(err, request.version, outdated, attempt=attempt)
                attempt += err.request_fails
                pause_s = max(err.after_s, self._timeouts.pause_s * 2.0 ** min(failures, 10))
                failures += 1
                stopped.wait(min(pause_s, _MAX_PAUSE_S))
        return []

    def _check_retry(self, err: "_RetryableError", version: str, outdated: Callable[[], bool], *, attempt: int) -> None:
        """Raise Unavailable if there should be no further attempt."""
        if err.version_changed and outdated():
            raise Unavailable(
                f"version {version} was replaced during the ranking; rank again with the new one"
            ) from err
        if err.request_fails and attempt >= _MAX_ATTEMPTS:
            raise Unavailable(f"{self.url} fails repeatedly on the same request: {err}") from err
        if time.monotonic() - self._last_reply_at > self._timeouts.fail_s:
            raise Unavailable(
                f"{self.url} no longer answers: {err}; restart it, then rank again; the scores so far are kept"
            ) from err

    def _post(self, request: ScoreRequest, tasks: Sequence[PoolTask]) -> list[Outcome]:
        body = {"tasks": [{"id": task.id, "data": task.data} for task in tasks], **asdict(request)}
        try:
            reply = self._http.request("POST", f"{self.url}/score", body=json.dumps(body).encode(), redirect=False)
        except urllib3.exceptions.HTTPError as err:
            raise _RetryableError(f"it cannot be reached ({type(err).__name__})") from err
        if reply.status != 200:
            raise _error_for(self.url, reply)
        try:
            outcomes = [parse_score(each) for each in json.loads(reply.data)["results"]]
        except (ValueError, LookupError, TypeError) as err:
            raise _RetryableError(f"its reply is invalid ({type(err).__name__})", request_fails=True) from err
        if [outcome.task for outcome in outcomes] != [task.id for task in tasks]:
            raise _RetryableError("its reply is for other tasks", request_fails=True)
        return outcomes


# ---- replies


class _RetryableError(Exception):
    """The request failed and may succeed later.

    Either the server serves another version (`version_changed`), or only this request fails (`request_fails`).
    """

    def __init__(
        self, reason: str, *, after_s: float = 0.0, request_fails: bool = False, version_changed: bool = False
    ) -> None:
        super().__init__(reason)
        self.after_s, self.request_fails, self.version_changed = after_s, request_fails, version_changed


def _error_for(url: str, reply: urllib3.BaseHTTPResponse) -> Exception:
    """Return the exception for a reply other than 200."""
    try:
        detail = str(json.loads(reply.data)["detail"])
    except (ValueError, LookupError, TypeError):
        detail = "no reason given"
    if reply.status == 409:
        return _RetryableError(detail, version_changed=True)
    if reply.status in {429, 502, 503, 504}:
        after = reply.headers.get("Retry-After", "")
        return _RetryableError(
            f"it answers {reply.status}: {detail}", after_s=float(after) if after.isdecimal() else 0.0
        )
    if reply.status >= 500:
        return _RetryableError(f"it answers {reply.status}: {detail}", request_fails=True)
    if reply.status == 401:
        return ConfigError(
            f"the server at {url} rejects the password; set LABELNEXT_BASIC_AUTH to the server's user:password"
        )
    if reply.status in {404, 405} or 300 <= reply.status < 400:
        return ConfigError(
            f"expected an inference server with /score at {url}, it answers {reply.status}; check the address, and "
            "that server and trainer are of the same release"
        )
    return ConfigError(f"the server at {url} refuses the request ({reply.status}): {detail}")


class _Health(NamedTuple):
    """A reply of /health."""

    reached: bool
    version: str | None
    detail: str


def _explain(url: str, version: str, health: _Health) -> str:
    if not health.reached:
        return f"no server answers at {url} ({health.detail}); start one, or set --server or LABELNEXT_SERVER"
    served = f"{health.version or 'no version'}, not {version}"
    return (
        f"the server at {url} serves {served}{health.detail and f': {health.detail}'}; set LABELNEXT_MODELS to the "
        "same place for server and trainer, leave LABELNEXT_MODEL unset for the server, and see in its log whether it "
        "refused the version"
    )
