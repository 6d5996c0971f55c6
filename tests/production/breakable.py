"""The server's application with additional routes that inject faults."""

import time

from flask import Flask

from server.app import create_app


def create_breakable_app() -> Flask:
    """Create the application.

    POST /break ends the batcher at the next image, like a bug or a GPU failure. POST /clock/<days> shifts `time.time`
    by this number of days.
    """
    app = create_app()
    service, now = app.extensions["labelnext"], time.time

    @app.post("/break")
    def break_batcher() -> str:
        def fail(*_: object) -> None:
            raise SystemExit("injected fault")

        service.models.only.engine.run_passes = fail
        return ""

    @app.post("/clock/<int(signed=True):days>")
    def set_clock(days: int) -> str:
        time.time = lambda: now() + days * 86400
        return ""

    return app
