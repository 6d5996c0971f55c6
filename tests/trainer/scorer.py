"""A fake inference server: scores derived from the task's data, and failures set by tests."""

import base64
import json
from contextlib import contextmanager

import numpy as np

from bench.harness.hosts import host, reply
from trainer.scoring.scores import digest

LABELS = ("cat", "dog")


class Scorer:
    """A server of one version; tests set its failures."""

    def __init__(self, version):
        self.version = version
        self.before = lambda body: None
        """Called with each body of /score; may return another reply: (status, content, headers)."""
        self.broken = set()
        """Tasks whose images do not exist."""
        self.unreachable = set()
        """Tasks whose image host is down."""
        self.bodies = []
        """The bodies of /score so far."""

    def health(self, handler, _):
        answer(handler, 200, {"status": "UP", "model_version": self.version, "detail": None})

    def score(self, handler, request):
        body = json.loads(request.body)
        self.bodies.append(body)
        replaced = self.before(body)
        if replaced is not None:
            return answer(handler, *replaced)
        if body["version"] != self.version:
            return answer(handler, 409, {"error": "other_version", "detail": f"{self.version} is in use"})
        results = [self.element(task, body) for task in body["tasks"]]
        return answer(handler, 200, {"model_version": self.version, "labels": LABELS, "results": results})

    def element(self, task, body):
        if task["id"] in self.broken:
            return {"task": task["id"], "error": {"code": "fetch", "detail": "no such file"}}
        if task["id"] in self.unreachable:
            detail = f"{task['data']['image'][:40]} cannot be reached, or the connection broke off (NewConnectionError)"
            return {"task": task["id"], "error": {"code": "fetch", "detail": detail, "later": True}}
        passes = passes_of(task)
        mean = passes.mean(axis=0)
        region = {
            "from_name": "label",
            "to_name": "image",
            "type": "choices",
            "value": {"choices": [LABELS[int(mean.argmax())]]},
            "score": float(mean.max()),
            "meta": {"bald": bald_of(task), "entropy": 0.5, "model_version": self.version},
        }
        scores = {
            "task": task["id"],
            "prediction": {"model_version": self.version, "score": 0.1, "result": [region]},
            "probabilities": mean.tolist(),
            "bald": bald_of(task),
            "entropy": 0.5,
        }
        if body["embeddings"]:
            scores["embedding"] = base64.b64encode(embedding_of(task).tobytes()).decode()
        if body["passes"]:
            scores["passes"] = base64.b64encode(passes.astype("<f4").tobytes()).decode()
        return scores

    @property
    def requested_tasks(self):
        """The task numbers of all requests, sorted."""
        return sorted(task["id"] for body in self.bodies for task in body["tasks"])


def _rng(task):
    return np.random.default_rng(int(digest(task["data"]), 16))


def passes_of(task):
    """Return the probabilities of all passes: (T, C)."""
    first = _rng(task).random(20)
    return np.stack([first, 1 - first], axis=1)


def bald_of(task):
    """Return the BALD in nats, below ln 2."""
    return float(_rng(task).random() * 0.6)


def embedding_of(task):
    """Return a unit vector, float16 (256,)."""
    vector = _rng(task).standard_normal(256)
    return (vector / np.linalg.norm(vector)).astype("<f2")


def answer(handler, status, content, headers=None):
    reply(json.dumps(content).encode(), status=status, content_type="application/json", **(headers or {}))(
        handler, None
    )


@contextmanager
def scorer(version):
    """Context manager for a server at `url`."""
    state = Scorer(version)
    with host() as server:
        server.answers = {"/health": state.health, "/score": state.score}
        state.url, state.requests = server.url, server.requests
        yield state
