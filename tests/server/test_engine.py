import numpy as np
import onnxruntime
import pytest

from contract.errors import ConfigError, DropoutDead
from contract.passes import draw_masks
from server.engine import Engine, EngineOptions, InferenceError, batch_buckets, bucket_of, check_device
from server.settings import Device, MaskPolicy
from tests.server.tiny_model import PASSES, SITES, TinyModel, draw_images, expected_bald, publish, save_graph


@pytest.fixture
def version(repository):
    return repository.open(publish(repository))


def make_engine(version, **options):
    return Engine(version, EngineOptions(device=Device.CPU, threads=1, max_batch_images=8, **options))


def test_bald_is_that_of_the_versions_masks(version):
    """The graph's BALD is the definition's, computed pass by pass in float64."""
    images = draw_images(5)
    outputs = make_engine(version).run(images)
    expected = expected_bald(TinyModel.draw(), version.name, images)
    np.testing.assert_allclose(outputs.bald, expected, atol=1e-5)
    assert expected.min() > 0.01


def test_outputs_have_the_documented_shapes(version):
    """N, T and C are those of the request, the settings and the labels."""
    outputs = make_engine(version, passes=7).run(draw_images(3))
    assert outputs.mean_probabilities.shape == (3, 3)
    assert outputs.bald.shape == outputs.entropy.shape == (3,)
    assert outputs.pass_probabilities.shape == (3, 7, 3)


def test_scores_do_not_depend_on_the_batch(version):
    """Padding and company change no score."""
    engine, images = make_engine(version), draw_images(7)
    together = engine.run(images).bald
    alone = np.concatenate([engine.run(image[None]).bald for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_two_engines_of_a_version_agree_exactly(version):
    """Replicas give the same score to the last bit."""
    images = draw_images(4)
    first, second = make_engine(version).run(images), make_engine(version).run(images)
    assert np.array_equal(first.pass_probabilities, second.pass_probabilities)


def test_given_masks_replace_the_engines(version):
    """The probe's masks are used when they are given."""
    images, masks = draw_images(2), draw_masks("another", SITES, 5)
    outputs = make_engine(version).run(images, masks)
    np.testing.assert_allclose(outputs.pass_probabilities, TinyModel.draw().passes(images, masks), atol=1e-5)


def test_fresh_masks_differ_between_calls(version):
    """With LABELNEXT_MASKS=fresh no two calls use the same masks."""
    engine, images = make_engine(version, masks=MaskPolicy.FRESH), draw_images(1)
    assert not np.array_equal(engine.run(images).bald, engine.run(images).bald)


def test_passes_come_from_the_manifest_unless_set(version):
    """T is the manifest's by default."""
    assert make_engine(version).passes == PASSES
    assert make_engine(version, passes=3).passes == 3


@pytest.mark.parametrize(("provider", "warmed"), [("cuda", [8, 4, 2, 1]), ("cpu", [1])])
def test_warming_leaves_nothing_cold(version, monkeypatch, provider, warmed):
    """A GPU searches an algorithm for each batch size that can occur; a CPU has nothing to search."""
    engine, sizes = make_engine(version), []
    monkeypatch.setattr(Engine, "provider", provider)
    monkeypatch.setattr(engine, "run", lambda images: sizes.append(len(images)))
    engine.warm()
    assert sizes == warmed


@pytest.mark.parametrize(("most", "buckets"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (32, (1, 2, 4, 8, 16, 32))])
def test_buckets_are_powers_of_two_up_to_the_limit(most, buckets):
    """The largest bucket is the limit itself."""
    assert batch_buckets(most) == buckets


def test_a_batch_goes_into_the_smallest_bucket_that_holds_it():
    """What is larger than every bucket is run as it is."""
    assert [bucket_of(n, (1, 2, 4)) for n in (1, 2, 3, 4, 9)] == [1, 2, 4, 4, 9]


@pytest.mark.parametrize("images", [np.zeros((1, 9, 8, 3), np.uint8), np.zeros((1, 8, 8, 3)), draw_images(0)])
def test_wrong_images_are_refused(version, images):
    """Shape and dtype are checked, and the message names both."""
    with pytest.raises(ValueError, match=r"expected uint8 images of shape \(N, 8, 8, 3\), got"):
        make_engine(version).run(images)


def test_a_failing_run_is_an_inference_error(version):
    """What onnxruntime raises does not get out."""
    with pytest.raises(InferenceError, match="onnxruntime failed on 1 images"):
        make_engine(version).run(draw_images(1), {"mask_0": np.ones((2, 16), np.float32)})


def test_a_graph_without_active_dropout_is_refused(version):
    """Dead dropout is noticed when the graph is lowered."""
    save_graph(TinyModel.draw().graph(active=False), version.path)
    with pytest.raises(DropoutDead):
        make_engine(version)


def test_the_provider_is_the_one_in_use(version):
    """A CPU session says so."""
    assert make_engine(version).provider == "cpu"


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime may find a GPU"
)
def test_demanding_cuda_without_it_fails_at_once():
    """LABELNEXT_PROVIDER=cuda never ends on the CPU."""
    with pytest.raises(ConfigError, match=r"LABELNEXT_PROVIDER=cuda, but this onnxruntime offers only"):
        check_device(Device.CUDA)


def test_cuda_that_is_offered_but_not_there_is_noticed(version, monkeypatch):
    """onnxruntime-gpu on a machine without a GPU serves on the CPU, and refuses if CUDA is demanded."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("server.engine._try_cuda", lambda: "no CUDA device answers")
    automatic = Engine(version, EngineOptions(threads=1))
    assert automatic.provider == "cpu"
    with pytest.raises(ConfigError, match="no CUDA device answers"):
        Engine(version, EngineOptions(device=Device.CUDA, threads=1))


@pytest.mark.gpu
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is not installed"
)
def test_cuda_agrees_with_the_cpu(version):
    """A GPU gives the scores that a CPU gives."""
    images = draw_images(6)
    on_gpu = Engine(version, EngineOptions(device=Device.CUDA, threads=1))
    np.testing.assert_allclose(on_gpu.run(images).bald, make_engine(version).run(images).bald, atol=1e-4)
