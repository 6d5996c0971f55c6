"""The inference server, as a ranking asks it: which version it serves, and what it says of many images.

Owns what is tried again and for how long. Where there are several servers, the address is that of a proxy before them.
Knows no more of an answer than how to part it into scores.
"""

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
from trainer.scoring.portions import Portions
from trainer.scoring.scores import Failure, Score, parse_score

_log = logging.getLogger(__name__)

_REQUESTS_AT_ONCE: Final = 8
"""Enough to keep a server busy without waiting for the network, or a few behind a proxy."""
_ATTEMPTS: Final = 5
"""Times that one request is tried which the server itself could not answer."""
_ANSWER_S: Final = 150.0
"""The server gives up by itself after LABELNEXT_DEADLINE_S, 90 by default."""
_LONGEST_PAUSE_S: Final = 15.0
_EXPIRED: Final = "expired"

Outcome = Score | Failure


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every task."""

    project: int
    label_config: str
    version: str
    embeddings: bool = False
    passes: bool = False


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on with a server that does not do what it should, in seconds."""

    reach_s: float = 10.0
    """At the start, if it cannot be reached at all."""
    load_s: float = 180.0
    """At the start, if it serves another version."""
    fail_s: float = 180.0
    """Since it last answered."""
    look_s: float = 0.25
    """Between two looks at the start."""
    pause_s: float = 1.0
    """Before the second attempt; each pause is twice the one before it."""


class Server:
    """A server, or a proxy before several, that answers for one version.

    Its address is such as http://localhost:9090, and a path in it is kept; `basic_auth` is `user:password`.
    """

    def __init__(self, url: str, basic_auth: str | None = None, *, patience: Patience | None = None) -> None:
        self.url = url.rstrip("/")
        self._patience = patience or Patience()
        login = urllib3.make_headers(basic_auth=basic_auth) if basic_auth else {}
        self._http = urllib3.PoolManager(
            maxsize=_REQUESTS_AT_ONCE,
            retries=False,
            timeout=urllib3.Timeout(connect=5.0, read=_ANSWER_S),
            headers={"Content-Type": "application/json", **login},
        )
        self._answered_at = time.monotonic()

    def wait_for(self, version: str) -> None:
        """Return once the server serves a version; raises Unavailable if it does not in time."""
        started = time.monotonic()
        while (state := self._look(version)).version != version:
            allowed_s = self._patience.load_s if state.reached else self._patience.reach_s
            if time.monotonic() - started >= allowed_s:
                raise Unavailable(_explain(self.url, version, state))
            time.sleep(self._patience.look_s)

    def _look(self, version: str) -> "_State":
        """Ask which version is served; named, the one that is waited for is looked for at once."""
        wanted = {"version": version}
        try:
            reply = self._http.request("GET", f"{self.url}/health", fields=wanted, timeout=5.0, redirect=False)
            document = json.loads(reply.data)
            return _State(True, document["model_version"], document.get("detail") or "")
        except urllib3.exceptions.HTTPError as err:
            return _State(False, None, type(err).__name__)
        except (ValueError, LookupError, TypeError, AttributeError):
            return _State(False, None, f"its answer ({reply.status}) is not that of an inference server")

    def score(
        self, tasks: Sequence[PoolTask], question: Question, *, outdated: Callable[[], bool] = lambda: False
    ) -> Iterator[list[Outcome]]:
        """Have tasks scored, many requests at once, and yield the answers as they come: one outcome for each task.

        `outdated` says whether the version asked for has been replaced, so that no server will have it again.

        Raises:
            ConfigError: if the server refuses the request.
            Unavailable: if it does not answer for a while.
        """
        portions, over = Portions(tasks), threading.Event()
        answers = SimpleQueue[list[Outcome] | Exception]()
        self._answered_at = time.monotonic()

        def work() -> None:
            try:
                while (portion := portions.take()) and not over.is_set():
                    started = time.monotonic()
                    outcomes = self._insist(portion, question, outdated, over=over)
                    late = {each.task for each in outcomes if isinstance(each, Failure) and each.code == _EXPIRED}
                    late -= portions.note(portion, late, seconds=time.monotonic() - started)
                    answers.put([outcome for outcome in outcomes if outcome.task not in late])
            except Exception as err:  # whatever it is, the thread that waits for answers must hear of it
                over.set()
                answers.put(err)

        for _ in range(min(len(tasks), _REQUESTS_AT_ONCE)):
            threading.Thread(target=work, name="scores", daemon=True).start()
        missing = len(tasks)
        try:
            while missing:
                if isinstance(answer := answers.get(), Exception):
                    raise answer
                missing -= len(answer)
                yield answer
        finally:
            over.set()

    def _insist(
        self, tasks: Sequence[PoolTask], question: Question, outdated: Callable[[], bool], *, over: threading.Event
    ) -> list[Outcome]:
        """Ask for a portion until it is answered; empty if that is over before."""
        attempt, failures = 1, 0
        while not over.is_set():
            try:
                outcomes = self._post(question, tasks)
                self._answered_at = time.monotonic()
                return outcomes
            except _Later as later:
                self._check_worth(later, question.version, outdated, attempt=attempt)
                attempt += later.its_own
                pause_s = max(later.after_s, self._patience.pause_s * 2.0 ** min(failures, 10))
                failures += 1
                over.wait(min(pause_s, _LONGEST_PAUSE_S))
        return []

    def _check_worth(self, later: "_Later", version: str, outdated: Callable[[], bool], *, attempt: int) -> None:
        """Raise Unavailable unless it is worth asking again."""
        if later.moved and outdated():
            raise Unavailable(
                f"version {version} was replaced while it was ranked by; rank again by the new one"
            ) from later
        if later.its_own and attempt >= _ATTEMPTS:
            raise Unavailable(f"{self.url} fails on the same request again and again: {later}") from later
        if time.monotonic() - self._answered_at > self._patience.fail_s:
            raise Unavailable(
                f"{self.url} answers no more: {later}; run it again, then rank again: what was scored is kept"
            ) from later

    def _post(self, question: Question, tasks: Sequence[PoolTask]) -> list[Outcome]:
        body = {"tasks": [{"id": task.id, "data": task.data} for task in tasks], **asdict(question)}
        try:
            reply = self._http.request("POST", f"{self.url}/score", body=json.dumps(body).encode(), redirect=False)
        except urllib3.exceptions.HTTPError as err:
            raise _Later(f"it cannot be reached ({type(err).__name__})") from err
        if reply.status != 200:
            raise _judge(self.url, reply)
        try:
            outcomes = [parse_score(each) for each in json.loads(reply.data)["results"]]
        except (ValueError, LookupError, TypeError) as err:
            raise _Later(f"its answer cannot be read ({type(err).__name__})", its_own=True) from err
        if [outcome.task for outcome in outcomes] != [task.id for task in tasks]:
            raise _Later("it answered for other tasks than it was asked", its_own=True)
        return outcomes


# ---- answers


class _Later(Exception):
    """Got no answer now, and may get one later.

    It may be that the server serves another version (`moved`), or that it is this request alone that fails (`its_own`).
    """

    def __init__(self, reason: str, *, after_s: float = 0.0, its_own: bool = False, moved: bool = False) -> None:
        super().__init__(reason)
        self.after_s, self.its_own, self.moved = after_s, its_own, moved


def _judge(url: str, reply: urllib3.BaseHTTPResponse) -> Exception:
    """What an answer other than 200 means."""
    try:
        detail = str(json.loads(reply.data)["detail"])
    except (ValueError, LookupError, TypeError):
        detail = "it does not say why"
    if reply.status == 409:
        return _Later(detail, moved=True)
    if reply.status in {429, 502, 503, 504}:
        after = reply.headers.get("Retry-After", "")
        return _Later(f"it answers {reply.status}: {detail}", after_s=float(after) if after.isdecimal() else 0.0)
    if reply.status >= 500:
        return _Later(f"it answers {reply.status}: {detail}", its_own=True)
    if reply.status == 401:
        return ConfigError(
            f"the server at {url} refuses the password; set LABELNEXT_BASIC_AUTH to the same user:password as there"
        )
    if reply.status in {404, 405} or 300 <= reply.status < 400:
        return ConfigError(
            f"expected an inference server that scores at {url}, it answers {reply.status}; check the address, and "
            "that server and trainer are of one release"
        )
    return ConfigError(f"the server at {url} refuses the request ({reply.status}): {detail}")


class _State(NamedTuple):
    """What a server's /health said."""

    reached: bool
    version: str | None
    detail: str


def _explain(url: str, version: str, state: _State) -> str:
    if not state.reached:
        return f"no server answers at {url} ({state.detail}); start one, or name it with --server or LABELNEXT_SERVER"
    served = f"{state.version or 'no version'}, not {version}"
    return (
        f"the server at {url} serves {served}{state.detail and f': {state.detail}'}; have LABELNEXT_MODELS "
        "name the same place for server and trainer, leave LABELNEXT_MODEL unset for the server, and see in its log "
        "whether it refused the version"
    )
