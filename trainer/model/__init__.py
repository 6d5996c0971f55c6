"""The network: backbones, heads, fitting, and ONNX graphs."""
