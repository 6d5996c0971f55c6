import pytest

from bench.gpu.cards import peak_tflops
from server.settings import Precision


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H200", Precision.FP16, 989),
        ("NVIDIA H100 PCIe", Precision.FP32, 51),
        ("NVIDIA A100-SXM4-80GB", Precision.FP32, 19.5),
        ("NVIDIA L4", Precision.FP16, 121),
        ("NVIDIA L40S", Precision.FP16, None),
        ("Tesla T4", Precision.FP32, 8.1),
        ("NVIDIA H200", Precision.INT8, None),
    ],
)
def test_peak_tflops_depends_on_the_exact_model(name, precision, expected):
    assert peak_tflops(name, precision) == expected
