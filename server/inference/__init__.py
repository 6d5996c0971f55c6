"""Models in use, and the scoring of images: fetching, batching, and onnxruntime."""
