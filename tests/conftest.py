"""What all tests share: settings of the person who runs them do not reach them, and GPU tests say when they skip."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence

import hypothesis
import pytest

# Shared machines are slow by fits and starts; a time limit for each example would fail for that alone.
hypothesis.settings.register_profile("labelnext", deadline=None)
hypothesis.settings.load_profile("labelnext")


# Of what a failed test printed and logged: enough to see what went before.
SHOWN_LINES = 80
CHATTY = ("onnx_ir", "onnxscript", "torch")


def pytest_configure() -> None:
    """Of whoever runs the tests no umask reaches them, and no signal that a shell or nohup has its jobs ignore."""
    os.umask(0o022)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What torch draws does not depend on which tests have run before, on this core or another."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of what a test printed: the failure itself is not to scroll away."""
    report = yield
    report.sections = [(name, _end(text)) for name, text in report.sections]
    return report


def _end(text: str) -> str:
    lines = text.splitlines(keepends=True)
    left_out = len(lines) - SHOWN_LINES
    return text if left_out <= 0 else "".join([f"... {left_out} lines before these\n", *lines[-SHOWN_LINES:]])


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Generator[None]:
    """Nothing is synced: no test cuts the power, and each file would wait some milliseconds for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No LABELNEXT_ variable is set but by the test itself."""
    for name in [name for name in os.environ if name.startswith("LABELNEXT_")]:
        monkeypatch.delenv(name)


PATIENT = {"system": (600, ["system"]), "production": (900, ["production", "system"])}
"""Folders of tests with real programs: the seconds that one may take, and its marks."""


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark what takes real programs, and give it time; skip what needs a GPU where none answers."""
    for item in items:
        seconds, marks = PATIENT.get(item.path.parent.name, (None, []))
        for mark in marks:
            item.add_marker(mark)
        if seconds and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(seconds))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_gpu():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU; nvidia-smi finds none here"))


def _has_gpu() -> bool:
    program = shutil.which("nvidia-smi")
    return program is not None and subprocess.run([program, "-L"], capture_output=True, check=False).returncode == 0
