"""The trainer: turns the labels of a project into a published version, and ranks its unlabelled tasks."""

import os

# Disables the telemetry of onnxruntime; must be set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
