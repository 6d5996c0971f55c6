"""`python -m bench.gpu`: whether all of it runs on a GPU, and how fast."""
