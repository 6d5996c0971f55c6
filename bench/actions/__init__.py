"""`python -m bench.actions`: how many actions it takes to label a whole pool."""
