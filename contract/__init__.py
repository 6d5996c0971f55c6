"""What the trainer and the server agree on: the artefact, its validation, the pixels and the scores.

Imports neither of them, and needs no more than numpy, Pillow, onnx, urllib3 and pydantic; obstore where a repository
is in a bucket, and minisign's library where versions are signed.
"""
