"""Requests and answers: who may ask, bodies, waiting, Label Studio's JSON, gunicorn's worker."""
