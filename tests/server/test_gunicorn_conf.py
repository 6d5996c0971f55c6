import runpy
from pathlib import Path

import pytest

import server.gunicorn_conf

CONF = Path(server.gunicorn_conf.__file__)


def run_conf(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(f"LABELNEXT_{name}", value)
    return runpy.run_path(str(CONF))


def test_one_process_with_many_threads(monkeypatch):
    """One session serves all; nothing is loaded before the fork; probes find a thread when every place is taken."""
    conf = run_conf(monkeypatch, BIND="0.0.0.0:1234", THREADS="7", QUEUE_REQUESTS="20")
    assert (conf["worker_class"], conf["workers"]) == ("server.http.worker.Worker", 1)
    assert conf["threads"] > 27
    assert conf["worker_connections"] > conf["threads"]
    assert (conf["bind"], conf["preload_app"], conf["control_socket_disable"]) == ("0.0.0.0:1234", False, True)


def test_a_request_in_hand_is_finished_at_shutdown(monkeypatch):
    """Gunicorn waits for longer than a request may take."""
    assert run_conf(monkeypatch, DEADLINE_S="12.5")["graceful_timeout"] == 18


def test_wrong_settings_end_the_start_with_one_line(monkeypatch):
    """No traceback stands before the message."""
    with pytest.raises(SystemExit, match="labelnext: LABELNEXT_THREADS must be "):
        run_conf(monkeypatch, THREADS="x")
