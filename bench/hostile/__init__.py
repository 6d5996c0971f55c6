"""Attacks a real server with hostile images, addresses and requests, and checks that they have no effect."""
