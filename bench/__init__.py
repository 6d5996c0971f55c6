"""Benchmarks, one module or package per question. Each prints a table and, as its last line, a JSON object."""
