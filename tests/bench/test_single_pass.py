import numpy as np
import onnx
import pytest

from bench.subjects.tiny_model import PASSES, TinyModel, draw_images, publish
from contract.versions.repository import Repository
from server.settings import Device

pytest.importorskip("openvino", reason="needs requirements/bench.txt, which make bench-passes installs")

from bench.passes.single_pass import compile_by_batch, open_session, read_plain, remove_dropout


@pytest.fixture
def version(tmp_path):
    repository = Repository(tmp_path)
    return repository.open(publish(repository))


def expected_logits(images, *, features=np.float16):
    """What the network gives without dropout, its features rounded to what a type holds."""
    first, second, last = TinyModel.draw().weights
    hidden = np.maximum(images.reshape(len(images), -1) / 255 @ first, 0).astype(features)
    return np.maximum(hidden.astype(np.float64) @ second, 0) @ last


def test_no_dropout_is_left():
    """Dropouts become Identities, and the graph stays whole."""
    graph = remove_dropout(TinyModel.draw().graph())
    assert [node.op_type for node in graph.graph.node].count("Identity") == 2
    assert "Dropout" not in {node.op_type for node in graph.graph.node}
    onnx.checker.check_model(graph)


def test_openvino_computes_the_deterministic_network_at_every_batch_size(version):
    """Compiled for 1 and for 4 images, it agrees with numpy; to round the features is no cost that it pays."""
    run = compile_by_batch(read_plain(version), threads=1)
    for batch in (1, 4, 1):
        images = draw_images(4)[:batch]
        (found,) = run(images).values()
        np.testing.assert_allclose(found, expected_logits(images, features=np.float32), atol=1e-4)


def test_onnxruntime_computes_the_deterministic_network_unless_told_to_keep_dropout(version):
    """A session as it is by default has lost its dropout; the naive contender's runs differ."""
    images = {"images": draw_images(4)}
    single = open_session(version, device=Device.CPU, threads=1)
    np.testing.assert_allclose(single.run(None, images)[0], expected_logits(images["images"]), atol=1e-4)
    naive = open_session(version, device=Device.CPU, threads=1, keep_dropout=True)
    passes = np.stack([naive.run(None, images)[0] for _ in range(PASSES)])
    assert passes.std(axis=0).min() > 0
