"""Parsers of untrusted bytes raise only their documented errors.

A target parses bytes, ignores the documented errors, and checks properties of accepted input, such as a round trip.
"""

import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto

from bench.subjects.tiny_model import TinyModel, draw_probe
from contract.errors import ConfigError, DigestError, LabelnextError, ManifestError, SignatureError
from contract.graph.lowering import FEATURES, lower
from contract.graph.probe import Probe
from contract.images.download import HttpUrl
from contract.labelconfig import parse_label_config
from contract.matching import choose_control
from contract.versions.inspection import inspect_graph
from contract.versions.manifest import DropoutSite, FileDigest, Manifest
from contract.versions.results import Metrics
from contract.versions.signatures import VerifyKey, read_public_key
from contract.versions.version import WEIGHTS_FILES
from tests import versions
from tests.mutation import mutate_json
from tests.versions import VERSION

MANIFEST = replace(
    versions.manifest(VERSION),
    labels=("ant", "bee", "cat"),
    control="label",
    dropout_sites=(DropoutSite((16,), 0.5),),
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
"""Its secret key was deleted."""
SIGNATURE = b"""untrusted comment: labelnext version 20260102T030405678Z-0a1b2c
RUT27iHnr6E8YZzRPYMBCu1Yv1ef3/oe/O2N3IQm/b5trZ/hlBwGN5y86+4+RfGoSYo7OURkJXSP9eFDzw9NF+ENWaox2iiP2AE=
trusted comment: labelnext version 20260102T030405678Z-0a1b2c
t3s/4BxjgIR7Qujd0NccAIGwWFGKQaI/hFuuuMbjBDJOC5No0JZcBD74/LXk7VvBdehfkXUfEwSRcAXv8CpOCA==
"""
"""By its secret key, of another manifest."""


NAMELESS = b'<View><Image value="$p"/><Choices name="l" toName=""><Choice value="a"/></Choices></View>'


def label_config(data):
    """Parse a labelling config."""
    with suppress(ConfigError):
        controls = parse_label_config(data.decode(errors="replace"))
        for control in controls:
            assert control.from_name
            assert control.to_name
            assert control.labels
            assert len(set(control.labels)) == len(control.labels)
        assert choose_control(controls, name=None, labels=("ant",)) in controls


def manifest(data):
    """Parse a manifest.json: accepted ones survive a round trip, and name files within a folder."""
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
    """Parse a .minisig file; none is valid for this manifest."""
    with suppress(SignatureError):
        VerifyKey(PUBLIC_KEY).verify(b"manifest", data, version=VERSION)
        raise AssertionError("a signature was forged")


def public_key(data):
    """Parse a public key."""
    with suppress(ValueError, ConfigError):
        VerifyKey(read_public_key(data.decode(errors="replace")))


def image_url(data):
    """Parse the URL of an image: accepted ones are unchanged by a second parse."""
    with suppress(ValueError):
        url, _, location = data.decode(errors="replace").partition("\n")
        parsed = HttpUrl.parse(url)
        assert HttpUrl.parse(parsed.url) == parsed
        assert parsed.origin.scheme in ("http", "https")
        assert 0 < parsed.origin.port < 65536
        parsed.follow(location)


def probe(data):
    """Parse a probe.npz."""
    with tempfile.NamedTemporaryFile() as file, suppress(DigestError):
        file.write(data)
        file.flush()
        read = Probe.load(Path(file.name))
        assert len(read.images) == len(read.features) == len(read.mean)


def graph(data):
    """Parse and lower a model.onnx."""
    with suppress(DecodeError, LabelnextError):
        model = ModelProto.FromString(data)
        inspect_graph(model, weights_bytes=dict.fromkeys(WEIGHTS_FILES, 4096))
        lower(model, cut=FEATURES)


def _probe_seeds():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.npz"
        drawn = draw_probe(TinyModel.draw(), VERSION)
        drawn.save(path)
        yield path.read_bytes()
        np.savez(path, **{name: getattr(drawn, name) for name in Probe.__slots__})
        yield path.read_bytes()


TARGETS = {
    "label-config": (label_config, lambda: [CONFIG.encode(), NAMELESS]),
    "manifest": (manifest, lambda: [MANIFEST.to_json().encode(), replace(MANIFEST, files={}).to_json().encode()]),
    "signature": (signature, lambda: [SIGNATURE]),
    "public-key": (public_key, lambda: [PUBLIC_KEY.encode()]),
    "image-url": (image_url, lambda: [b"HTTP://Host.Example:8080/a/../b.png?q=1#f\n//other/c", b"https://[::1]/\n/x"]),
    "probe": (probe, _probe_seeds),
    "graph": (graph, lambda: [TinyModel.draw().graph().SerializeToString()]),
}
"""A target and seeds: valid input, and input that revealed a fault."""


@pytest.mark.parametrize("name", TARGETS)
def test_truncated_files_are_parsed_or_rejected(name):
    """Interrupted writes leave truncated files."""
    parse, seeds = TARGETS[name]
    for seed in seeds():
        for length in {0, 1, len(seed) // 2, len(seed) - 1, len(seed)}:
            parse(seed[:length])


@pytest.mark.parametrize("name", TARGETS)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_parsed_or_rejected(name, content):
    TARGETS[name][0](content)


@given(number=st.integers(0, 2**32))
def test_any_edit_of_a_manifest_is_parsed_or_rejected(number):
    parse, seeds = TARGETS["manifest"]
    for seed in seeds():
        parse(mutate_json(seed, number))
