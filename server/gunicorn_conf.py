"""gunicorn's settings: one process with many threads.

    gunicorn -c server/gunicorn_conf.py "server.app:create_app()"

Several processes would each hold the models and run smaller batches; use replicas instead. Nothing is loaded before the
fork, because CUDA does not survive it.
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

_MAX_FILES = 1 << 16
_OTHER_FILES = 512
"""File descriptors for fetched images, the repository, and the process itself."""


def _raise_file_limit() -> int:
    """Raise the limit of file descriptors, one of which each connection uses, as far as allowed, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MAX_FILES if hard == resource.RLIM_INFINITY else min(_MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


bind = _settings.bind
worker_class = "server.http.worker.Worker"
workers = 1
# One for each running or waiting request, and some for probes and pages; idle threads cost little.
threads = _settings.threads + _settings.queue_requests + 32
# A slow client occupies a connection but no thread.
worker_connections = min(10_000, max(threads, _raise_file_limit() - _OTHER_FILES))
backlog = 4096
preload_app = False
graceful_timeout = math.ceil(_settings.deadline_s) + 5  # running requests are finished
timeout = 120  # for the start; later a threaded worker's heartbeat does not wait for requests
keepalive = 5
control_socket_disable = True
logconfig_dict = logging_config()


def worker_exit(server: Any, worker: Any) -> None:
    """Stop the application's threads before the interpreter exits."""
    from server.app import close_app

    if getattr(worker, "wsgi", None) is not None:
        close_app(worker.wsgi)
