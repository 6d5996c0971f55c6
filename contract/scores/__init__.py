"""Acquisition scores of stochastic passes, and records of the rankings made with them."""
