from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.subjects.tiny_model import PASSES, SITES, TinyModel, draw_images, expected_bald, publish
from contract.errors import ConfigError
from contract.graph.fingerprint import features_key
from contract.graph.masks import draw_masks
from server.inference import backbone as backbone_module
from server.inference.backbone import Backbone
from server.inference.engine import Engine, EngineOptions
from server.inference.sessions import InferenceError, Session, batch_buckets, check_device
from server.settings import Device, Precision
from tests.networks import open_session
from tests.trainer.small import coloured_images, freeze_network, lively_network


@pytest.fixture
def version(repository):
    return repository.open(publish(repository))


def make_engine(version, *, former=None, max_batch_images=8, **options):
    options = EngineOptions(device=Device.CPU, threads=1, max_batch_images=max_batch_images, **options)
    return Engine(version, options, backbones=former._backbones if former else None)


def test_scores_are_independent_of_batch_and_engine(version):
    engine, images = make_engine(version), draw_images(7)
    together = engine.run(images)
    alone = np.concatenate([engine.run(image[None]).bald for image in images])
    np.testing.assert_allclose(together.bald, alone, atol=1e-6)
    assert np.array_equal(together.pass_probabilities, make_engine(version).run(images).pass_probabilities)


@pytest.mark.parametrize(("provider", "warmed"), [("cuda", [8, 4, 2, 1]), ("cpu", [1])])
def test_warm_runs_all_batch_sizes_on_a_gpu_and_one_on_a_cpu(version, monkeypatch, provider, warmed):
    """A GPU searches algorithms for each batch size."""
    engine, sizes = make_engine(version), []
    monkeypatch.setattr(engine, "provider", provider)
    monkeypatch.setattr(Backbone, "compute", lambda self, images: sizes.append(len(images)))
    monkeypatch.setattr(engine, "run_passes", lambda features: sizes.append(len(features)))
    engine.warm()
    assert sizes == [size for size in warmed for _ in ("backbone", "head")]


def test_probe_features_are_cached_by_the_backbone(repository, monkeypatch):
    """A swap to another head computes only images that are new to the backbone."""
    model, computed = TinyModel.draw(0), []
    first = make_engine(repository.open(publish(repository, model=model)))
    retrained = model.with_head_of(TinyModel.draw(1))
    second = make_engine(repository.open(publish(repository, model=retrained)), former=first)
    images = draw_images(80)
    expected, compute = first.backbone.compute(images), Backbone.compute
    monkeypatch.setattr(Backbone, "compute", lambda self, images: computed.append(len(images)) or compute(self, images))
    for engine, rows, new in (
        (first, range(16), 16),
        (second, [3, *range(1, 16), 16, 3], 1),
        (second, range(80), 63),
        (first, range(16, 80), 0),
        (first, range(1), 1),
    ):
        engine.warm()
        features = engine.backbone.compute_probe(images[[*rows]])
        np.testing.assert_allclose(features, expected[[*rows]], atol=1e-5)
        assert sum(computed) == new + (rows == range(16))
        computed.clear()


@given(count=st.integers(1, 40), max_rows=st.integers(1, 40), largest=st.integers(1, 20))
def test_rows_are_run_in_parts_padded_to_bucket_sizes(count, max_rows, largest):
    """The padding is removed from the outputs."""
    sizes, buckets = [], batch_buckets(largest)

    def run(_, feeds):
        sizes.append(len(feeds["x"]))
        return [feeds["x"] + feeds["more"], np.zeros(len(feeds["x"]))]

    session = Session(SimpleNamespace(run=run, get_inputs=lambda: [SimpleNamespace(name="x")]), buckets)
    rows = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    sums, zeros = session.run(["y", "z"], rows, {"more": 1}, max_rows=max_rows)
    np.testing.assert_array_equal(sums, rows + 1)
    assert zeros.shape == (count,)
    parts = [min(max_rows, count - start) for start in range(0, count, max_rows)]
    assert sizes == [min((size for size in buckets if size >= part), default=part) for part in parts]


def test_many_images_are_run_in_parts(version, monkeypatch):
    """This bounds the memory for feature maps and passes."""
    engine, images, sizes, pad = make_engine(version), draw_images(1100), [], Session._pad
    monkeypatch.setattr(Session, "_pad", lambda self, rows: sizes.append(len(rows)) or pad(self, rows))
    outputs = engine.run(images)
    assert sizes == [*[16] * 68, 12, 1024, 76]
    np.testing.assert_allclose(outputs.bald, expected_bald(TinyModel.draw(), version.name, images), atol=1e-3)
    assert outputs.pass_probabilities.shape == (1100, PASSES, 3)


@pytest.mark.parametrize(
    ("seed", "options"),
    [(1, {}), (0, {"precision": Precision.INT8}), (0, {"max_batch_images": 16})],
    ids=["another-backbone", "another-precision", "other-options"],
)
def test_a_different_backbone_is_not_shared(repository, seed, options):
    in_use = make_engine(repository.open(publish(repository, seed=0)), precision=Precision.FP32)
    version = repository.open(publish(repository, seed=seed, int8_of=TinyModel.draw(2)))
    engine = make_engine(version, former=in_use, **{"precision": Precision.FP32, **options})
    assert engine.backbone is not in_use.backbone
    images, own = draw_images(3), TinyModel.draw(2 if "precision" in options else seed)
    np.testing.assert_allclose(engine.backbone.compute(images), own.features(images), atol=1e-2)


def test_a_broken_int8_backbone_falls_back_to_the_one_in_use(repository, caplog):
    model = TinyModel.draw()
    in_use = make_engine(repository.open(publish(repository, model=model)), precision=Precision.INT8)
    caplog.clear()
    version = repository.open(publish(repository, model=model, int8_of=model))
    version.int8_backbone_path.write_bytes(b"not a graph")
    engine = make_engine(version, former=in_use, precision=Precision.INT8)
    assert (engine.precision, engine.backbone) == ("fp32", in_use.backbone)
    (record,) = caplog.records
    assert (record.message, record.model_version) == ("served in fp32", version.name)
    assert "backbone.int8.onnx" in record.reason


def test_the_feature_key_depends_on_precision_weights_and_preprocessing(repository, monkeypatch):
    """Each of them changes the features."""
    model = TinyModel.draw()
    version = repository.open(publish(repository, model=model, int8_of=model))
    again = repository.open(publish(repository, model=model, int8_of=TinyModel.draw(1)))
    keys = [make_engine(version, precision=precision).backbone.key for precision in (Precision.FP32, Precision.INT8)]
    keys.append(make_engine(again, precision=Precision.INT8).backbone.key)
    keys.append(features_key(backbone_module._fingerprint(version, Precision.FP16), Precision.FP16))
    monkeypatch.setattr("contract.graph.fingerprint.RECIPE", "cropped-bicubic-2")
    keys.append(make_engine(version, precision=Precision.FP32).backbone.key)
    assert len(set(keys)) == 5


def test_int8_uses_the_int8_backbone_and_fp32_the_other(repository, caplog):
    model, other = TinyModel.draw(0), TinyModel.draw(1)
    version = repository.open(publish(repository, model=model, int8_of=other))
    engine = make_engine(version, precision=Precision.INT8, passes=7)
    images, masks = draw_images(3), draw_masks("another", SITES, 5)
    assert engine.precision == "int8"
    np.testing.assert_allclose(engine.backbone.compute(images), other.features(images), atol=1e-5)
    expected = other.with_head_of(model).passes(images, masks)
    np.testing.assert_allclose(engine.run(images, masks).pass_probabilities, expected, atol=1e-5)
    assert not caplog.records
    full = engine.in_fp32()
    assert (full.version, full.passes, full.precision, full.buckets) == (version.name, 7, "fp32", (1, 2, 4, 8))
    np.testing.assert_allclose(full.backbone.compute(images), model.features(images), atol=1e-5)


@pytest.mark.parametrize(
    ("requested", "device", "has_int8", "chosen", "reason"),
    [
        (Precision.INT8, Device.CUDA, True, Precision.FP32, "int8 is for the CPU"),
        (Precision.INT8, Device.CPU, False, Precision.FP32, "no backbone.int8.onnx; publish with `python -m trainer"),
        (Precision.FP16, Device.CPU, True, Precision.FP32, "fp16 is for a GPU"),
        (Precision.AUTO, Device.CUDA, True, Precision.FP16, None),
        (Precision.FP16, Device.CUDA, False, Precision.FP16, None),
        (Precision.AUTO, Device.CPU, True, Precision.INT8, None),
        (Precision.AUTO, Device.CPU, False, Precision.FP32, None),
        (Precision.FP32, Device.CUDA, True, Precision.FP32, None),
    ],
)
def test_precision_is_the_requested_or_fastest(repository, caplog, requested, device, has_int8, chosen, reason):
    """If it is not available, fp32 is used with a warning; auto never warns."""
    version = repository.open(publish(repository, int8_of=TinyModel.draw() if has_int8 else None))
    assert backbone_module._choose_precision(requested, version, device) is chosen
    logged = [(record.levelname, record.message, record.model_version) for record in caplog.records]
    assert logged == ([("WARNING", "served in fp32", version.name)] if reason else [])
    assert all(reason in record.reason for record in caplog.records)


@pytest.mark.slow
def test_conversion_to_fp16_keeps_input_and_output_types(tmp_path):
    frozen = freeze_network(lively_network(), tmp_path / "version")
    version = SimpleNamespace(path=frozen.folder)
    converted = backbone_module._convert(frozen.graph, version, Precision.FP16)
    images, _ = coloured_images(np.random.default_rng(0), 4)
    full, half = (
        open_session(model).run(["features"], {"images": images})[0]
        for model in (frozen.graph_with_weights(), converted)
    )
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.01 * np.abs(full).max()
    assert {tensor.data_type for tensor in converted.graph.initializer if tensor.dims} >= {onnx.TensorProto.FLOAT16}


def test_an_onnxruntime_failure_raises_inference_error(version):
    with pytest.raises(InferenceError, match="onnxruntime failed on a batch of 1: "):
        make_engine(version).run(draw_images(1), {"mask_0": np.ones((2, 16), np.float32)})


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime supports CUDA"
)
def test_required_cuda_fails_without_onnxruntime_gpu():
    with pytest.raises(ConfigError, match=r"LABELNEXT_PROVIDER=cuda, but this onnxruntime offers only"):
        check_device(Device.CUDA)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_required_cuda_fails_without_a_device(version, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    automatic = Engine(version, EngineOptions(threads=1))
    assert automatic.provider == "cpu"
    with pytest.raises(ConfigError, match="no CUDA device answers"):
        Engine(version, EngineOptions(device=Device.CUDA, threads=1))


@pytest.mark.gpu
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is not installed"
)
def test_cuda_agrees_with_the_cpu(version):
    images = draw_images(6)
    on_gpu = Engine(version, EngineOptions(device=Device.CUDA, threads=1))
    np.testing.assert_allclose(on_gpu.run(images).bald, make_engine(version).run(images).bald, atol=1e-4)
