"""What the trainer and the server agree on: the artefact, its proof, the pixels and the scores.

Imports neither of them, and needs no more than numpy, Pillow, onnx and urllib3.
"""
