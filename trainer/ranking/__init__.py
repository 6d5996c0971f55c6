"""One ranking of a Label Studio project: scores from the servers, an order, predictions back."""
