"""What can keep the demo from going on; the messages are meant for the person who runs it."""


class DemoError(Exception):
    """The demo cannot go on."""


class ProcessError(DemoError):
    """A process that the demo needs ended early or did not answer in time."""
