import runpy
from pathlib import Path

import pytest

import server.gunicorn_conf

CONF = Path(server.gunicorn_conf.__file__)


def run_conf(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(f"LABELNEXT_{name}", value)
    return runpy.run_path(str(CONF))


def test_graceful_timeout_exceeds_the_deadline(monkeypatch):
    assert run_conf(monkeypatch, DEADLINE_S="12.5")["graceful_timeout"] == 18


def test_invalid_settings_end_the_process_with_one_line(monkeypatch):
    with pytest.raises(SystemExit, match="labelnext: LABELNEXT_THREADS must be "):
        run_conf(monkeypatch, THREADS="x")
