"""The Makefile: its help, its check of Python's version, and repeated runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from demo.product import CHECKOUT


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)


def test_make_lists_its_targets():
    text = _make().stdout
    assert [target for target in ("demo", "test", "check", "fix", "clean") if f"make {target} " not in text] == []


def test_an_old_python_is_refused_with_advice(tmp_path: Path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 || exit 1\n')
    old.chmod(0o755)
    done = _make(f"PYTHON={old}", "--always-make", ".venv-label-studio-ml/.complete")
    assert done.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert "Python 3.9.2" in done.stderr
    assert "make PYTHON=" in done.stderr


def test_a_second_make_installs_nothing():
    assert _make("--dry-run", "environments").stdout.count("pip install") == 0
