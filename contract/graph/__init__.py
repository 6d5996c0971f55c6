"""From the literal ONNX graph to its stochastic passes: lowering, dropout masks, fingerprint, probe."""
