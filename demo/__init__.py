"""Label Studio, trainer and server on one machine, with real images: `python -m demo`, or `make demo`.

Talks to Label Studio and the server over HTTP, and runs the trainer by its command line. Failures raise DemoError,
whose message is printed for the user. Besides the demo itself, the tests use this package to start the same processes.
"""
