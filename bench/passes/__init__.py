"""`python -m bench.passes`: what T passes cost and are worth."""
