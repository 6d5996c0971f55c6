"""Evaluation of versions: held-out images, metrics, comparison, advice."""
