"""Versions of a model: their manifest, the repository that holds them, signatures, requests to train."""
