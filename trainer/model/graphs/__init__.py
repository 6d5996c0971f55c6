"""The network as graphs: exported, quantised, run by onnxruntime, and validated against torch."""
