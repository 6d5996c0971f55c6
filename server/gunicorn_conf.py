"""gunicorn's settings: one process, one session, many threads.

    gunicorn -c server/gunicorn_conf.py "server.app:create_app()"

More processes would each hold the model and run it in smaller batches; scale by replicas. Nothing is loaded before the
fork, because CUDA does not survive one.
"""

import math
import resource
import sys
from typing import Any

from contract.errors import ConfigError
from server.observe.logs import logging_config
from server.settings import Settings

try:
    _settings = Settings.read()
except ConfigError as err:
    sys.exit(f"labelnext: {err}")

_FILES = 1 << 16
_OTHER_FILES = 512
"""Of images that are fetched, of the repository, and of the process itself."""


def _raise_file_limit() -> int:
    """Let the process have as many files as it may, for a connection is one; return how many these are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


bind = _settings.bind
worker_class = "server.http.worker.Worker"
workers = 1
# One for each request that is in hand or waits, and some for probes and pages; idle ones cost little.
threads = _settings.threads + _settings.queue_requests + 32
# A slow client costs one of these and nothing else.
worker_connections = min(10_000, max(threads, _raise_file_limit() - _OTHER_FILES))
backlog = 4096
preload_app = False
graceful_timeout = math.ceil(_settings.deadline_s) + 5  # a request in hand is always finished
timeout = 120  # for starting up; a gthread worker's heartbeat does not wait for requests
keepalive = 5
control_socket_disable = True
logconfig_dict = logging_config()


def worker_exit(server: Any, worker: Any) -> None:
    """Stop the application's threads before the interpreter does."""
    from server.app import close_app

    if getattr(worker, "wsgi", None) is not None:
        close_app(worker.wsgi)
