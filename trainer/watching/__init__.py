"""The service that trains and ranks when labels have come in."""
