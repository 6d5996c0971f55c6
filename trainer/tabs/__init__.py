"""Our tabs in Label Studio's Data Manager."""
