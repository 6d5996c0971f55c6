"""Label Studio, trainer and server on one machine, with real images: `python -m demo`, or `make demo`.

Talks to Label Studio and the server over HTTP, and runs the trainer as a person would. What cannot go on raises
DemoError, whose message is meant for the person. Nothing imports this package but the system tests, which start the
same processes.
"""
