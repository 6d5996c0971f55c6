"""`python -m bench.gpu`: whether everything runs on the GPU, and how fast."""
