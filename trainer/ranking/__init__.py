"""Ranking of a Label Studio project: scores from the server, an order, and predictions in Label Studio."""
