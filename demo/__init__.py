"""Label Studio, trainer and server on one machine, with real images: `python -m demo`, or `make demo`.

Talks to Label Studio and the server over HTTP, and runs the trainer as a person would. Nothing imports this package but
the system tests, which start the same processes.
"""
