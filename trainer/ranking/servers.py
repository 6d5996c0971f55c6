"""The inference servers, as a ranking asks them: which version they serve, and what it says of many images.

Owns what is tried again and for how long. A server that fails is left out as long as another one answers; a request is
lost with none of them. Knows no more of an answer than how to part it into scores.
"""

import base64
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Final

import urllib3

from contract.errors import ConfigError, LabelnextError, Unavailable
from trainer.labelstudio import PoolTask
from trainer.ranking.scores import Failure, Score, parse_score

_log = logging.getLogger(__name__)

REQUEST_TASKS: Final = 64
"""Two of the server's batches: on a slow CPU a few seconds, and no waiting for the network in between."""

_REQUEST_BYTES: Final = 8 * 2**20
"""Tasks may hold whole images as data: URIs; the server reads no more than 64 MiB at once."""
_REQUESTS_AT_ONCE: Final = 4
"""To each server: enough to keep a few replicas busy that share one address."""
_ATTEMPTS: Final = 5
"""Times that one image or one request is tried which the server itself could not answer."""
_ANSWER_S: Final = 150.0
"""The server gives up by itself after LABELNEXT_DEADLINE_S, 90 by default."""
_LONGEST_PAUSE_S: Final = 15.0
_EXPIRED: Final = "expired"


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
    """How long to go on with servers that do not do what they should, in seconds."""

    reach_s: float = 10.0
    """With one that cannot be reached at all, at the start."""
    load_s: float = 180.0
    """With one that serves another version, at the start."""
    fail_s: float = 180.0
    """With one that has answered before."""
    pause_s: float = 1.0
    """Before the second attempt; each pause is twice the one before it."""


class Servers:
    """Servers that answer for one version."""

    def __init__(self, urls: Sequence[str], basic_auth: str | None = None, *, patience: Patience | None = None) -> None:
        """Take the servers' addresses; ask none yet.

        Args:
            urls: such as http://localhost:9090; a path in them is kept.
            basic_auth: `user:password`, where the servers demand it.
            patience: by default that of a ranking which nobody watches.

        Raises:
            ConfigError: if an address is none.
        """
        self._urls = [_checked(url) for url in dict.fromkeys(urls)]
        self._patience = patience or Patience()
        self._http = urllib3.PoolManager(
            maxsize=_REQUESTS_AT_ONCE,
            retries=False,
            timeout=urllib3.Timeout(connect=5.0, read=_ANSWER_S),
            headers=_headers(basic_auth),
        )

    def wait_for(self, version: str) -> list[str]:
        """Return the servers that serve a version, once all do or the others are not worth more time.

        Raises:
            Unavailable: if none of them does in time.
        """
        started = time.monotonic()
        while True:
            states = {url: self._look(url) for url in self._urls}
            waited = time.monotonic() - started
            ready = [url for url, state in states.items() if state.version == version]
            missing = [url for url in self._urls if url not in ready]
            if not any(self._worth_waiting(states[url], waited) for url in missing):
                break
            time.sleep(self._patience.pause_s)
        if not ready:
            raise Unavailable(_nobody(version, states))
        for url in missing:
            _log.warning("%s is left out: %s", url, states[url].say(version))
        self._urls = ready
        return ready

    def _worth_waiting(self, state: "_State", waited_s: float) -> bool:
        return waited_s < (self._patience.load_s if state.reached else self._patience.reach_s)

    def _look(self, url: str) -> "_State":
        try:
            reply = self._http.request("GET", f"{url}/health", timeout=5.0, redirect=False)
            document = json.loads(reply.data)
            return _State(True, document["model_version"], document.get("detail"))
        except urllib3.exceptions.HTTPError as err:
            return _State(False, None, type(err).__name__)
        except (ValueError, LookupError, TypeError):
            return _State(False, None, f"its answer ({reply.status}) is not that of an inference server")

    def score(
        self, tasks: Sequence[PoolTask], question: Question, *, outdated: Callable[[], bool] = lambda: False
    ) -> Iterator[list[Score | Failure]]:
        """Have the servers score tasks, many requests at once, and give the answers as they come.

        Args:
            tasks: each comes in one answer, in whichever order.
            question: what is asked of each.
            outdated: whether the version asked for has been replaced, so that no server will have it again.

        Raises:
            ConfigError: if the servers refuse the request.
            Unavailable: if none of them answers for a while.
        """
        work = _Work(list(_portions(tasks)), servers=len(self._urls))
        for url in self._urls:
            server = _Server(url, alive=_REQUESTS_AT_ONCE)
            for _ in range(_REQUESTS_AT_ONCE):
                arguments = (server, work, question, outdated)
                threading.Thread(target=self._serve, args=arguments, name="scores", daemon=True).start()
        try:
            yield from work.answers()
        finally:
            work.end()

    def _serve(self, server: "_Server", work: "_Work", question: Question, outdated: Callable[[], bool]) -> None:
        """Ask one server for one portion after the other; at the root of a thread."""
        try:
            while (portion := work.take(server)) is not None:
                self._ask(server, work, portion, question=question, outdated=outdated)
        except Exception as err:  # whatever it is, the thread that waits for answers must hear of it
            work.fail(err)
        finally:
            work.leave(server)

    def _ask(
        self,
        server: "_Server",
        work: "_Work",
        portion: "_Portion",
        *,
        question: Question,
        outdated: Callable[[], bool],
    ) -> None:
        try:
            outcomes = self._post(server.url, question, portion.tasks)
        except _Later as later:
            server.trouble = str(later)
            if later.moved and outdated():
                raise Unavailable(
                    f"version {question.version} was replaced while it was ranked by; rank again by the new one"
                ) from later
            if later.its_own and portion.attempt >= _ATTEMPTS:
                raise Unavailable(f"{server.url} fails on the same request again and again: {later}") from later
            endured = server.endures(self._patience.fail_s)  # before others are woken, who go by it
            work.put_back(portion.again() if later.its_own else portion)
            if not endured:
                return
            work.over.wait(server.pause(later.after_s, self._patience.pause_s))
        else:
            server.did_well()
            work.finish(portion, outcomes)

    def _post(self, url: str, question: Question, tasks: Sequence[PoolTask]) -> list[Score | Failure]:
        body = {
            "tasks": [{"id": task.id, "data": task.data} for task in tasks],
            "project": question.project,
            "label_config": question.label_config,
            "version": question.version,
            "embeddings": question.embeddings,
            "passes": question.passes,
        }
        try:
            reply = self._http.request("POST", f"{url}/score", body=json.dumps(body).encode(), redirect=False)
        except urllib3.exceptions.HTTPError as err:
            raise _Later(f"it cannot be reached ({type(err).__name__})") from err
        if reply.status != 200:
            raise _judge(url, reply)
        try:
            outcomes = [parse_score(each) for each in json.loads(reply.data)["results"]]
        except (ValueError, LookupError, TypeError) as err:
            raise _Later(f"its answer cannot be read ({type(err).__name__})", its_own=True) from err
        if [outcome.task for outcome in outcomes] != [task.id for task in tasks]:
            raise _Later("it answered for other tasks than it was asked", its_own=True)
        return outcomes


# ---- one request


class _Later(Exception):
    """Got no answer now, and may get one later."""

    def __init__(self, reason: str, *, after_s: float = 0.0, its_own: bool = False, moved: bool = False) -> None:
        super().__init__(reason)
        self.after_s = after_s
        self.its_own = its_own
        """Whether it may be this request alone that fails."""
        self.moved = moved
        """Whether the server serves another version."""


def _judge(url: str, reply: urllib3.BaseHTTPResponse) -> Exception:
    """What an answer other than 200 means."""
    detail = _detail(reply)
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


def _detail(reply: urllib3.BaseHTTPResponse) -> str:
    try:
        return str(json.loads(reply.data)["detail"])
    except (ValueError, LookupError, TypeError):
        return "it does not say why"


def _headers(basic_auth: str | None) -> Mapping[str, str]:
    headers = {"Content-Type": "application/json"}
    if basic_auth is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(basic_auth.encode()).decode()}"
    return headers


def _checked(url: str) -> str:
    try:
        parsed = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError as err:
        raise ConfigError(_NO_ADDRESS) from err
    if parsed.scheme not in {"http", "https"} or not parsed.host or parsed.auth or parsed.query or parsed.fragment:
        raise ConfigError(_NO_ADDRESS)
    return url.rstrip("/")


_NO_ADDRESS: Final = (
    "a server's address must look like http://localhost:9090, without user and password (these go into "
    "LABELNEXT_BASIC_AUTH); set --server or LABELNEXT_SERVERS so"
)


# ---- who serves what


@dataclass(frozen=True, slots=True)
class _State:
    """What a server's /health said."""

    reached: bool
    version: str | None
    detail: Any

    def say(self, version: str) -> str:
        if not self.reached:
            return f"it cannot be reached ({self.detail})"
        served = f"it serves {self.version or 'no version'}, not {version}"
        return f"{served}: {self.detail}" if self.detail else served


def _nobody(version: str, states: Mapping[str, _State]) -> str:
    reasons = "; ".join(f"{url}: {state.say(version)}" for url, state in states.items())
    if any(state.reached for state in states.values()):
        return (
            f"no server serves version {version} ({reasons}); have LABELNEXT_MODELS and LABELNEXT_MODEL name the same "
            "folder for server and trainer, and see in the server's log whether it refused the version"
        )
    return f"no server answers ({reasons}); start one, or name it with --server or LABELNEXT_SERVERS"


# ---- many requests


@dataclass(frozen=True, slots=True)
class _Portion:
    """The tasks of one request."""

    tasks: tuple[PoolTask, ...]
    attempt: int = 1

    def again(self) -> "_Portion":
        return _Portion(self.tasks, self.attempt + 1)


def _portions(tasks: Sequence[PoolTask]) -> Iterator[_Portion]:
    gathered: list[PoolTask] = []
    size = 0
    for task in tasks:
        task_bytes = len(json.dumps(task.data))
        if gathered and (len(gathered) == REQUEST_TASKS or size + task_bytes > _REQUEST_BYTES):
            yield _Portion(tuple(gathered))
            gathered, size = [], 0
        gathered.append(task)
        size += task_bytes
    if gathered:
        yield _Portion(tuple(gathered))


@dataclass(slots=True)
class _Server:
    """One server as a round of questions knows it; shared by its threads."""

    url: str
    alive: int
    """Its threads that have not left."""
    trouble: str = ""
    given_up: bool = False
    _well_at: float = field(default_factory=time.monotonic)
    _failures: int = 0

    def did_well(self) -> None:
        self._well_at = time.monotonic()
        self._failures = 0

    def endures(self, patience_s: float) -> bool:
        """Whether it is worth asking again."""
        self.given_up = self.given_up or time.monotonic() - self._well_at > patience_s
        return not self.given_up

    def pause(self, asked_for_s: float, first_s: float) -> float:
        """How long to leave it alone, in seconds."""
        self._failures = min(self._failures + 1, 10)
        return min(max(asked_for_s, first_s * 2.0 ** (self._failures - 1)), _LONGEST_PAUSE_S)


class _Work:
    """What is still to be asked, and the answers so far; shared by the threads of all servers."""

    def __init__(self, portions: Sequence[_Portion], *, servers: int) -> None:
        self._waiting = deque(portions)
        self._open = len(portions)
        self._servers = servers
        self._changed = threading.Condition()
        self._answers: SimpleQueue[list[Score | Failure] | BaseException | None] = SimpleQueue()
        self.over = threading.Event()
        if not portions:
            self._answers.put(None)

    def answers(self) -> Iterator[list[Score | Failure]]:
        while (answer := self._answers.get()) is not None:
            if isinstance(answer, BaseException):
                raise answer
            yield answer

    def take(self, server: _Server) -> _Portion | None:
        """The next portion, waiting for one that may yet come back; None when there is no more for this server."""
        with self._changed:
            while not self._waiting and self._open and not self.over.is_set() and not server.given_up:
                self._changed.wait()
            if not self._waiting or self.over.is_set() or server.given_up:
                return None
            return self._waiting.popleft()

    def put_back(self, portion: _Portion) -> None:
        with self._changed:
            self._waiting.append(portion)
            self._changed.notify_all()  # one alone might be of a server that takes no more

    def finish(self, portion: _Portion, outcomes: Sequence[Score | Failure]) -> None:
        """Hand over answers; images for which the server ran out of time are asked for again."""
        late = {each.task for each in outcomes if isinstance(each, Failure) and each.code == _EXPIRED}
        if portion.attempt >= _ATTEMPTS:
            late = set()
        self._answers.put([outcome for outcome in outcomes if outcome.task not in late])
        with self._changed:
            if late:
                tasks = tuple(task for task in portion.tasks if task.id in late)
                self._waiting.append(_Portion(tasks, portion.attempt + 1))
            else:
                self._open -= 1
            if not self._open:
                self._answers.put(None)
            self._changed.notify_all()

    def fail(self, err: Exception) -> None:
        self._answers.put(err)
        self.end()

    def leave(self, server: _Server) -> None:
        """Note that a thread is done; with the last thread of the last server, nobody is left to ask."""
        with self._changed:
            server.alive -= 1
            if server.alive:
                return
            self._servers -= 1
            if not self._open or self.over.is_set():
                return
            if self._servers:
                _log.warning("%s is left out from here on: %s", server.url, server.trouble)
            else:
                self._answers.put(_unavailable(server))

    def end(self) -> None:
        self.over.set()
        with self._changed:
            self._changed.notify_all()


def _unavailable(server: _Server) -> LabelnextError:
    return Unavailable(
        f"no server is left to ask, the last one being {server.url}: {server.trouble}; run it again, then rank again: "
        "what was scored is kept"
    )
