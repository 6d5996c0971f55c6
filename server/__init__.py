"""The inference server: Label Studio's predict calls, answered with a label and an uncertainty.

Imports no torch and no trainer; what it serves comes from the model repository alone.
"""

import os

# onnxruntime reports its use to its maker unless told not to, before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
