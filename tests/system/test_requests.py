"""Replies to Label Studio's requests, compared with those of its reference implementation, label-studio-ml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import urllib3

from bench.harness.load import make_task, predict_body
from bench.harness.serving import serving
from bench.subjects.tiny_model import draw_images, publish
from contract.versions.repository import Repository
from demo.processes import free_port, running
from demo.product import python_of
from tests.server.conftest import to_data_uri

LABEL_CONFIG = (
    '<View><Image name="photo" value="$image"/>'
    '<Choices name="kind" toName="photo" choice="single" showInLine="true">'
    '<Choice value="ant"/><Choice value="bee"/><Choice value="cat"/></Choices></View>'
)

FROM_LABEL_STUDIO = {"User-Agent": "heartex/1.23.2", "Accept": "*/*"}
SETUP = {
    "project": "7.1791188130",
    "schema": LABEL_CONFIG,
    "hostname": "http://127.0.0.1:8080",
    "access_token": "f" * 40,
    "extra_params": None,
}

# A typical model, served as by `label-studio-ml start`.
REFERENCE = """
import sys
from label_studio_ml.api import init_app
from label_studio_ml.model import LabelStudioMLBase


class Guess(LabelStudioMLBase):
    def predict(self, tasks, **kwargs):
        value = {"choices": ["ant"]}
        region = {"from_name": "kind", "to_name": "photo", "type": "choices", "value": value, "score": 0.5}
        return [{"model_version": "a-guess", "score": 0.5, "result": [region]} for _ in tasks]


init_app(Guess, model_dir=sys.argv[1]).run(host="127.0.0.1", port=int(sys.argv[2]))
"""


def _request(url: str, method: str, path: str, body: object = None) -> Any:
    """Return the JSON of a reply, which must be 2xx."""
    answer = urllib3.request(method, url + path, json=body, headers=FROM_LABEL_STUDIO, retries=False, timeout=60)
    assert 200 <= answer.status < 300, answer.data
    return answer.json()


def test_replies_have_the_structure_of_label_studio_ml(tmp_path: Path):
    """Fields that Label Studio reads have the same names and types, down to each region."""
    (tmp_path / "guess.py").write_text(REFERENCE)
    publish(Repository(tmp_path / "models"))
    port = free_port()
    command: list[str | Path] = [python_of("label-studio-ml"), "guess.py", tmp_path, str(port)]
    # These ids are not in the random holdout, whose predictions have no label.
    tasks = [make_task(101 + number, to_data_uri(pixels)) for number, pixels in enumerate(draw_images(2))]
    with (
        running("label-studio-ml", command, log=tmp_path / "reference", environment={}, cwd=tmp_path) as child,
        serving(tmp_path / "models", log=tmp_path / "log", settings={}) as server,
    ):
        child.wait_for(f"http://127.0.0.1:{port}/health", timeout_s=60)
        for method, path, body, field in (
            ("GET", "/health", None, "status"),
            ("POST", "/setup", SETUP, "model_version"),
            ("POST", "/predict", predict_body(tasks, LABEL_CONFIG), "results"),
        ):
            reference, ours = (_request(url, method, path, body) for url in (f"http://127.0.0.1:{port}", server.url))
            assert _shape(ours[field], like=reference[field]) == _shape(reference[field])


def _shape(value: Any, *, like: Any = None) -> Any:
    """Return the keys and types of a JSON value; only the keys of `like`, if it is given."""
    if isinstance(value, dict):
        return {key: _shape(value[key], like=like and like[key]) for key in sorted(like or value)}
    if isinstance(value, list):
        return [_shape(item, like=like and like[index]) for index, item in enumerate(value)]
    return type(value).__name__
