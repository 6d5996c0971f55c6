"""`python -m bench.passes`: the cost of T passes, and how well they rank."""
