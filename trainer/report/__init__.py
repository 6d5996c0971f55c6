"""The report of a version, written when it is published."""
