"""Chaos test: faults are injected into servers behind a proxy, under load."""
