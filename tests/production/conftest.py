"""What an operator relies on, shown with real programs: slow, and run by `make test-system`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark all tests in this folder, and give them time."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.production)
            item.add_marker(pytest.mark.system)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(900))
