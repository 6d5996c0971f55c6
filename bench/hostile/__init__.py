"""Hostile images, addresses and requests, each with what must come of it, against a real server."""
