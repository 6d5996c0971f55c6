"""Servers behind a proxy while everything around them breaks; `python -m bench.chaos` says how."""
