"""What a version is like: the report that is written when it is published."""
