"""Scores of tasks: asked of a server, or computed here before there is a version, and kept until a ranking is whole."""
