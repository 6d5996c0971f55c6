"""The trainer: from labels to a published version that has been found to have its dropout alive.

Imports nothing of the server. torch, baal and onnx are imported by the modules that need them, never here, so that the
command line answers at once.
"""

import os

# onnxruntime reports its use to its maker unless told not to, before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
