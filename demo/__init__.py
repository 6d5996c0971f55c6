"""Label Studio, trainer and server on one machine, with real images: `python -m demo`, or `make demo`.

Talks to Label Studio and the server over HTTP, and runs the trainer as a command. Failures raise DemoError, whose
message is printed for the user. Tests and benchmarks use this package to start the same processes.
"""
