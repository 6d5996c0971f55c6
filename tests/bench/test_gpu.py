import json
from unittest.mock import Mock

import pytest

from bench.gpu import __main__ as gpu
from bench.gpu.__main__ import QUICK, Setup, Skipped, find_library_folders
from bench.gpu.cards import peak_tflops
from bench.gpu.placement import read_nodes, work_by_provider
from bench.subjects.model import Subject
from bench.subjects.tiny_model import TinyModel, publish
from contract.versions.repository import Repository
from server.settings import Device, Precision


def test_without_a_gpu_it_measures_what_can_be(run_bench):
    """On the CPU, fp16 is skipped and the peak unknown."""
    result = run_bench(gpu, "--device", "cpu", "--quick", "--parts", "placement,gate,roofline")
    placement, gate, roofline = (result["parts"][name] for name in ("placement", "gate", "roofline"))
    assert result["failed"] == []
    assert [part["fp16"] for part in (placement, gate, roofline)] == [{"skipped": "no CUDA here"}] * 3
    products = {name: nodes["CPUExecutionProvider"]["MatMul"] for name, nodes in placement["fp32"].items()}
    assert products == {"backbone": 1, "head": 2}
    assert gate["fp32"]["provider"] == "cpu"
    assert 0 < gate["fp32"]["largest_difference"] < 1e-4
    assert roofline["fp32"]["batch_2"]["images_per_s"] > 0
    assert roofline["fp32"]["peak_tflops"] == "unknown"


def test_a_part_that_fails_leaves_the_others(run_bench, monkeypatch):
    fails = {"passes": RuntimeError("the card fell off the bus"), "server": Skipped("not installed: flask")}
    parts = {name: Mock(side_effect=err) for name, err in fails.items()}
    monkeypatch.setattr(gpu, "_PARTS", parts | {"gate": gpu._PARTS["gate"]})
    result = run_bench(gpu, "--device", "cpu", "--quick")
    assert result["failed"] == ["passes"]
    assert result["parts"]["passes"]["failed"] == "RuntimeError: the card fell off the bus"
    assert result["parts"]["server"]["skipped"] == "not installed: flask"
    assert "fp32" in result["parts"]["gate"]
    with pytest.raises(SystemExit, match=r"expected some of passes,server,gate; got gates"):
        gpu.main(["--device", "cpu", "--parts", "gate,gates"])


def test_a_precision_that_is_refused_fails_the_part(tmp_path, monkeypatch):
    """With the reason logged by the server; the precision it falls back to is measured."""
    repository = Repository(tmp_path / "models")
    version = repository.open(publish(repository, seed=1, int8_of=TinyModel.draw(2)))
    subject = Subject(version, repository.root, (), "noise")
    monkeypatch.setattr(Setup, "precisions", (Precision.INT8,))
    monkeypatch.setattr("contract.graph.probe.BALD_NOISE", 0.0)
    row = gpu._PARTS["gate"](Setup(Device.CPU, QUICK, subject))
    assert row["int8"]["precision"] == "fp32"
    assert row["failed"].startswith("int8: refused: in reduced precision BALD ranks")


def test_other_benches_measure_what_the_device_is_for(monkeypatch):
    commands = []
    monkeypatch.setattr(gpu, "_run", lambda command: commands.append(command) or 'progress\n{"bench": "x", "rate": 1}')
    monkeypatch.setattr(gpu, "find_spec", {"flask": 1, "gunicorn": 1, "prometheus_client": 1}.get)
    setup = Setup(Device.CUDA, QUICK, None)
    assert [gpu._PARTS[name](setup) for name in ("passes", "server")] == [{"rate": 1}] * 2
    assert [command[command.index("--precision") + 1] for command in commands] == ["fp32", "fp16"]
    with pytest.raises(Skipped, match="not installed: openvino, nncf"):
        gpu._PARTS["passes"](Setup(Device.CPU, QUICK, None))


def test_work_that_ran_elsewhere_is_seen(tmp_path):
    ran = [
        ("conv_1", "CUDAExecutionProvider", "FusedConv"),
        ("conv_1", "CUDAExecutionProvider", "FusedConv"),
        ("fc", "CPUExecutionProvider", "FusedGemm"),
        ("shape", "CPUExecutionProvider", "Shape"),
    ]
    events = [{"cat": "Node", "name": n, "args": {"provider": p, "op_name": o}} for n, p, o in ran]
    (tmp_path / "profile.json").write_text(json.dumps([{"cat": "Session", "name": "run"}, *events]))
    nodes = read_nodes(tmp_path / "profile.json")
    assert nodes == {
        "CUDAExecutionProvider": {"FusedConv": 1},
        "CPUExecutionProvider": {"FusedGemm": 1, "Shape": 1},
    }
    assert work_by_provider(nodes) == {"CUDAExecutionProvider": 1, "CPUExecutionProvider": 1}


def test_peaks_are_of_the_very_card():
    """Cards with similar names differ, and unknown cards have none."""
    for name, precision, expected in (
        ("NVIDIA H200", Precision.FP16, 989),
        ("NVIDIA H100 PCIe", Precision.FP32, 51),
        ("NVIDIA A100-SXM4-80GB", Precision.FP32, 19.5),
        ("NVIDIA L4", Precision.FP16, 121),
        ("NVIDIA L40S", Precision.FP16, None),
        ("Tesla T4", Precision.FP32, 8.1),
        ("NVIDIA H200", Precision.INT8, None),
    ):
        assert peak_tflops(name, precision) == expected


def test_libraries_are_found_wherever_pip_put_them(tmp_path):
    for file in ("a/nvidia/cu13/lib/libcublas.so.13", "b/nvidia/cudnn/lib/libcudnn.so.9", "b/nvidia/nccl/include/x.h"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    folders = find_library_folders([str(tmp_path / "a/nvidia"), str(tmp_path / "b/nvidia")])
    assert [str(path.relative_to(tmp_path)) for path in folders] == ["a/nvidia/cu13/lib", "b/nvidia/cudnn/lib"]
