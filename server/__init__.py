"""The inference server: answers Label Studio's predict calls with a label and an uncertainty for each image."""

import os

# Disables onnxruntime's telemetry, which must be done before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
