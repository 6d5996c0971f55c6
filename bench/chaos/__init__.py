"""Chaos test of servers behind a proxy: `python -m bench.chaos --help`."""
