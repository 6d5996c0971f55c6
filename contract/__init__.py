"""What the trainer and the server agree on: versions, their validation, pixels and scores."""
