import json

from bench.gpu.placement import read_nodes, work_by_provider


def test_a_profile_counts_nodes_and_products_by_provider(tmp_path):
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
