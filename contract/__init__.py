"""The contract between trainer and server: versions, their validation, pixels and scores."""
