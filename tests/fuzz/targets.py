"""What is fuzzed: each parser of bytes from elsewhere, with what must hold of any bytes.

A target takes bytes and returns; only the errors that a parser documents are caught, so that any other ends the run.
What is accepted must survive being written and read again.
"""

import json
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto

from bench.tiny_model import TinyModel, draw_probe
from contract.errors import ConfigError, DigestError, LabelnextError, ManifestError, RequestError, SignatureError
from contract.graph.lowering import lower
from contract.graph.probe import Probe
from contract.images.download import Target
from contract.labelconfig import parse_label_config
from contract.matching import choose_control
from contract.versions.inspection import inspect_graph
from contract.versions.manifest import DropoutSite, FileDigest, InputSpec, Manifest
from contract.versions.results import Metrics
from contract.versions.signatures import VerifyKey, read_public_key
from server.http.labelstudio import (
    build_predictions,
    find_images,
    parse_predict,
    parse_score,
    parse_setup,
    parse_webhook,
    resolve_target,
)
from server.inference.batching import ImageScores
from server.settings import Score

VERSION = "20260102T030405678Z-0a1b2c"
MANIFEST = Manifest(
    version=VERSION,
    created_at="2026-01-02T03:04:05+00:00",
    labels=("ant", "bee", "cat"),
    control="label",
    input=InputSpec(8, 8),
    passes=20,
    dropout_sites=(DropoutSite((16,), 0.5),),
    architecture="tiny",
    trunk="0" * 64,
    metrics=Metrics(accuracy=0.5),
    files={"model.onnx": FileDigest("a" * 64, 7), "report/index.html": FileDigest("b" * 64, 0)},
)
CONFIG = """<View>
  <Image name="photo" value="$picture"/>
  <Choices name="label" toName="photo" choice="multiple" perRegion="false">
    <Choice value="ant"/><View><Choice value="A bee" alias="bee"/></View><Choice value="cat&amp;&#233;"/>
  </Choices>
</View>"""
PUBLIC_KEY = "RWT27iHnr6E8Yan5co4mwZOwhaiO7NvlRk9UXONgOlbNcm4rSAtBdc84"
"""Of a pair whose secret half nobody has."""
SIGNATURE = b"""untrusted comment: labelnext version 20260102T030405678Z-0a1b2c
RUT27iHnr6E8YZzRPYMBCu1Yv1ef3/oe/O2N3IQm/b5trZ/hlBwGN5y86+4+RfGoSYo7OURkJXSP9eFDzw9NF+ENWaox2iiP2AE=
trusted comment: labelnext version 20260102T030405678Z-0a1b2c
t3s/4BxjgIR7Qujd0NccAIGwWFGKQaI/hFuuuMbjBDJOC5No0JZcBD74/LXk7VvBdehfkXUfEwSRcAXv8CpOCA==
"""
"""By it, of another manifest."""


@dataclass(frozen=True)
class Fuzzed:
    """A parser, and inputs that it accepts or was found to stumble over."""

    run: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    is_json: bool = False


def _json(data):
    """As server/http/bodies.py reads a body, of which only what is JSON goes on."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def predict(data):
    """A body of /predict, up to what is answered."""
    with suppress(RequestError, ConfigError):
        request = parse_predict(_json(data))
        target = resolve_target(request.label_config, VERSION, "label", MANIFEST.labels)
        images = find_images(request, target)
        assert len(images) == len(request.tasks)
        scores = ImageScores(
            bald=0.1, entropy=0.2, mean_probabilities=np.array([0.2, 0.7, 0.1], np.float32), embedding=None
        )
        answer = build_predictions([scores] * len(images), MANIFEST, target, Score.AGREEMENT)
        assert json.loads(json.dumps(answer)) == answer


def score(data):
    """A body of /score."""
    with suppress(RequestError):
        parse_score(_json(data))


def setup(data):
    """A body of /setup."""
    with suppress(RequestError, ConfigError):
        if schema := parse_setup(_json(data)).label_config:
            resolve_target(schema, VERSION, None, MANIFEST.labels)


def webhook(data):
    """A body of /webhook."""
    with suppress(RequestError):
        parsed = parse_webhook(_json(data))
        assert parsed.project_id is None or 0 <= parsed.project_id < 10**18


def label_config(data):
    """A labelling config."""
    with suppress(ConfigError):
        controls = parse_label_config(data.decode(errors="replace"))
        for control in controls:
            assert control.from_name
            assert control.to_name
            assert control.labels
            assert len(set(control.labels)) == len(control.labels)
        assert choose_control(controls, name=None, labels=("ant",)) in controls


def manifest(data):
    """A manifest.json: what is accepted is written and read again as the same, and names files within a folder."""
    with suppress(ManifestError, UnicodeDecodeError):
        read = Manifest.from_json(data.decode())
        text = read.to_json()
        text.encode()
        assert Manifest.from_json(text).to_json() == text
        for name in read.files:
            path = Path("/version") / name
            assert ".." not in path.parts
            assert path.is_relative_to("/version")
            path.exists()


def signature(data):
    """A .minisig file: none but the one by the key is taken."""
    with suppress(SignatureError):
        VerifyKey(PUBLIC_KEY).verify(b"manifest", data, version=VERSION)
        raise AssertionError("a signature was forged")


def public_key(data):
    """A public key, as it is set."""
    with suppress(ValueError, ConfigError):
        VerifyKey(read_public_key(data.decode(errors="replace")))


def target(data):
    """A URL of an image: what is accepted reads as itself again, in the same origin."""
    with suppress(ValueError):
        url, _, location = data.decode(errors="replace").partition("\n")
        parsed = Target.parse(url)
        again = Target.parse(parsed.url)
        assert again == parsed
        assert parsed.origin.scheme in ("http", "https")
        assert 0 < parsed.origin.port < 65536
        parsed.follow(location)


def probe(data):
    """A probe.npz."""
    with tempfile.NamedTemporaryFile(dir=_memory()) as file, suppress(DigestError):
        file.write(data)
        file.flush()
        read = Probe.load(Path(file.name))
        assert len(read.images) == len(read.features) == len(read.mean)


def graph(data):
    """A model.onnx."""
    with suppress(DecodeError, LabelnextError):
        model = ModelProto.FromString(data)
        inspect_graph(model, weights_bytes=4096)
        lower(model)


@cache
def _memory():
    return next((folder for folder in ("/dev/shm", None) if folder is None or Path(folder).is_dir()), None)


def _probe_seeds():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.npz"
        drawn = draw_probe(TinyModel.draw(), VERSION)
        drawn.save(path)
        yield path.read_bytes()
        np.savez(path, **{name: getattr(drawn, name) for name in Probe.__slots__})
        yield path.read_bytes()


def _bodies(**fields):
    """A body of /predict as Label Studio sends it, and one of nothing."""
    task = {"id": 7, "data": {"picture": "/data/upload/3/a.png", "n": 1}, "meta": {}, "predictions": [], "overlap": 1}
    body = {
        "tasks": [task, {**task, "id": 8}],
        "project": "3.1770000000",
        "label_config": CONFIG,
        "params": {"login": None, "password": None, "context": {"result": []}},
    }
    yield json.dumps({**body, **fields}).encode()
    yield json.dumps({**body, **fields, "tasks": []}).encode()


TARGETS = {
    "predict": Fuzzed(predict, _bodies, is_json=True),
    "score": Fuzzed(score, lambda: _bodies(version=VERSION, embeddings=True, passes=False), is_json=True),
    "setup": Fuzzed(
        setup,
        lambda: [json.dumps({"project": "3.17", "schema": CONFIG, "hostname": "http://x"}).encode()],
        is_json=True,
    ),
    "webhook": Fuzzed(
        webhook, lambda: [b'{"action": "START_TRAINING", "project": {"id": 3, "title": "birds"}}'], is_json=True
    ),
    "label-config": Fuzzed(label_config, lambda: [CONFIG.encode()]),
    "manifest": Fuzzed(
        manifest, lambda: [MANIFEST.to_json().encode(), replace(MANIFEST, files={}).to_json().encode()], is_json=True
    ),
    "signature": Fuzzed(signature, lambda: [SIGNATURE]),
    "public-key": Fuzzed(public_key, lambda: [PUBLIC_KEY.encode()]),
    "target": Fuzzed(target, lambda: [b"HTTP://Host.Example:8080/a/../b.png?q=1#f\n//other/c", b"https://[::1]/\n/x"]),
    "probe": Fuzzed(probe, _probe_seeds),
    "graph": Fuzzed(graph, lambda: [TinyModel.draw().graph().SerializeToString()]),
}
