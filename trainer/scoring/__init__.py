"""Scores of tasks: requested from a server, or embeddings computed here before there is a version; cached on disk."""
