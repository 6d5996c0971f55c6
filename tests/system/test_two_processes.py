"""What replicas rely on: separate processes compute the same scores."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

from tests.networks import build_small, export, flatten_first

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
SCORE = """
import sys, numpy as np, onnx
from contract.graph.masks import draw_masks
from contract.graph.lowering import lower
from tests.networks import Engine
lowered = lower(onnx.load(sys.argv[1]), cut="features")
images = np.random.default_rng(3).random((7, 3, 8, 8), dtype=np.float32)
masks = draw_masks("20260102T030405678Z-0a1b2c", lowered.sites, 20)
sys.stdout.write(Engine(lowered)(images, masks).bald.tobytes().hex())
"""


def test_two_processes_score_alike_to_the_bit(tmp_path):
    """Two processes give identical bytes for the same batch."""
    graph = flatten_first(export(build_small(), torch.rand(2, 3, 8, 8)))
    onnx.save(graph, tmp_path / "model.onnx")
    command = [sys.executable, "-c", SCORE, str(tmp_path / "model.onnx")]
    scores = {subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout for _ in range(2)}
    assert len(scores) == 1
    assert len(scores.pop()) == 7 * 4 * 2  # 7 float32 in hexadecimal
