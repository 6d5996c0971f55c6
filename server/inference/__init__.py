"""From references to scores: the session, batches, caches, and the versions in use."""
