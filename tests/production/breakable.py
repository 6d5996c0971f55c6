"""The server's application with a few routes more, for what can only be done to it from within."""

import time

from flask import Flask

from server.app import create_app


def create_breakable_app() -> Flask:
    """Build the application.

    POST /break ends its batcher as a bug or a dying GPU would, at the next image. POST /clock/<days> sets the time of
    day, for all who ask `time.time`, so many days from now.
    """
    app = create_app()
    service, now = app.extensions["labelnext"], time.time

    @app.post("/break")
    def break_it() -> str:
        def fail(*_: object) -> None:
            raise SystemExit("the end")

        service.models.alone.engine.run_passes = fail
        return ""

    @app.post("/clock/<int(signed=True):days>")
    def set_clock(days: int) -> str:
        time.time = lambda: now() + days * 86400
        return ""

    return app
