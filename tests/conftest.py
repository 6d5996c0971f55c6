"""Isolates tests from the environment, adds marks and time limits, and skips GPU tests without a GPU."""

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

# On shared machines, a time limit per example would fail at random.
hypothesis.settings.register_profile("labelnext", deadline=None)
hypothesis.settings.load_profile("labelnext")


# Lines shown of the output and logs of a failed test.
MAX_OUTPUT_LINES = 80
VERBOSE_LOGGERS = ("onnx_ir", "onnxscript", "torch")


def pytest_configure() -> None:
    """Reset the umask, signals that a shell or nohup may have set to be ignored, and the level of verbose loggers."""
    os.umask(0o022)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed torch, so that a test does not depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show only the end of a test's output, so that the failure stays visible."""
    report = yield
    report.sections = [(name, _last_lines(text)) for name, text in report.sections]
    return report


def _last_lines(text: str) -> str:
    lines = text.splitlines(keepends=True)
    omitted = len(lines) - MAX_OUTPUT_LINES
    return text if omitted <= 0 else "".join([f"... {omitted} lines omitted\n", *lines[-MAX_OUTPUT_LINES:]])


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Generator[None]:
    """Disable fsync, which takes milliseconds per file and matters only after a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _no_settings_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset all LABELNEXT_ variables before a test."""
    for name in [name for name in os.environ if name.startswith("LABELNEXT_")]:
        monkeypatch.delenv(name)


SLOW_FOLDERS = {"system": (600, ["system"]), "production": (900, ["production", "system"])}
"""Folders of tests with real programs: time limit of a test in seconds, and marks."""


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Add marks and time limits by folder, and skip GPU tests without a GPU."""
    for item in items:
        seconds, marks = SLOW_FOLDERS.get(item.path.parent.name, (None, []))
        for mark in marks:
            item.add_marker(mark)
        if seconds and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(seconds))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_gpu():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, but nvidia-smi finds none"))


def _has_gpu() -> bool:
    program = shutil.which("nvidia-smi")
    return program is not None and subprocess.run([program, "-L"], capture_output=True, check=False).returncode == 0
