"""The network: built, fitted, exported, quantised, validated."""
