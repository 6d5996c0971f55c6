from unittest.mock import Mock

import pytest

from bench.gpu import __main__ as gpu
from bench.gpu import programs
from bench.gpu.programs import find_library_folders
from bench.gpu.setup import QUICK, Setup, Skipped
from bench.subjects.model import Subject
from bench.subjects.tiny_model import TinyModel, publish
from contract.versions.repository import Repository
from server.settings import Device, Precision


def test_runs_on_cpu_without_fp16(run_bench):
    result = run_bench(gpu, "--device", "cpu", "--quick", "--parts", "placement,gate,roofline")
    placement, gate, roofline = (result["parts"][name] for name in ("placement", "gate", "roofline"))
    assert result["failed"] == []
    assert {"fp16"}.isdisjoint({*placement, *gate, *roofline})
    products = {name: nodes["CPUExecutionProvider"]["MatMul"] for name, nodes in placement["fp32"].items()}
    assert products == {"backbone": 1, "head": 2}
    assert gate["fp32"]["provider"] == "cpu"
    assert 0 < gate["fp32"]["largest_difference"] < 1e-4
    assert roofline["fp32"]["batch_2"]["images_per_s"] > 0
    assert roofline["fp32"]["peak_tflops"] is None


def test_failed_part_does_not_stop_the_others(run_bench, monkeypatch):
    errors = {"passes": RuntimeError("the card fell off the bus"), "server": Skipped("not installed: flask")}
    parts = {name: Mock(side_effect=err) for name, err in errors.items()}
    monkeypatch.setattr(gpu, "_PARTS", parts | {"gate": gpu._PARTS["gate"]})
    result = run_bench(gpu, "--device", "cpu", "--quick")
    assert result["failed"] == ["passes"]
    assert result["parts"]["passes"]["failed"] == "RuntimeError: the card fell off the bus"
    assert result["parts"]["server"]["skipped"] == "not installed: flask"
    assert "fp32" in result["parts"]["gate"]
    with pytest.raises(SystemExit, match=r"expected some of passes,server,gate; got gates"):
        gpu.main(["--device", "cpu", "--parts", "gate,gates"])


def test_rejected_precision_fails_the_part(tmp_path, monkeypatch):
    """The fallback precision is measured; the failure has the reason logged by the server."""
    repository = Repository(tmp_path / "models")
    version = repository.open(publish(repository, seed=1, int8_of=TinyModel.draw(2)))
    subject = Subject(version, repository.root, (), "noise")
    monkeypatch.setattr(Setup, "precisions", (Precision.INT8,))
    monkeypatch.setattr("contract.graph.probe.BALD_NOISE", 0.0)
    monkeypatch.setattr("contract.graph.probe.MIN_RANK_CORRELATION", 1.1)  # four images may rank alike by chance
    row = gpu._PARTS["gate"](Setup(Device.CPU, QUICK, subject))
    assert row["int8"]["precision"] == "fp32"
    assert row["failed"].startswith("int8: refused: in reduced precision BALD ranks")


def test_other_benchmarks_run_in_the_default_precision(monkeypatch):
    commands = []
    output = 'progress\n{"bench": "x", "rate": 1}'
    monkeypatch.setattr(programs, "run_module", lambda *command: commands.append(command) or output)
    monkeypatch.setattr(programs, "find_spec", {"flask": 1, "gunicorn": 1, "prometheus_client": 1}.get)
    setup = Setup(Device.CUDA, QUICK, None)
    assert [gpu._PARTS[name](setup) for name in ("passes", "server")] == [{"rate": 1}] * 2
    assert [command[command.index("--precision") + 1] for command in commands] == ["fp32", "fp16"]
    with pytest.raises(Skipped, match="not installed: openvino, nncf"):
        gpu._PARTS["passes"](Setup(Device.CPU, QUICK, None))


def test_finds_cuda_libraries_in_several_folders(tmp_path):
    for file in ("a/nvidia/cu13/lib/libcublas.so.13", "b/nvidia/cudnn/lib/libcudnn.so.9", "b/nvidia/nccl/include/x.h"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    folders = find_library_folders([str(tmp_path / "a/nvidia"), str(tmp_path / "b/nvidia")])
    assert [str(path.relative_to(tmp_path)) for path in folders] == ["a/nvidia/cu13/lib", "b/nvidia/cudnn/lib"]
