import os

import pytest

from server.inference.memory import memory_limit, resident


def test_what_is_resident_grows_with_what_is_held():
    """64 MiB that are written to are resident, and were so when they are gone."""
    before = resident()
    held = bytearray(os.urandom(1) * (64 * 2**20))
    during = resident()
    del held
    assert during.now - before.now > 60 * 2**20
    assert resident().most >= during.now


def test_a_system_that_does_not_say(tmp_path):
    """Nothing is made up where there is no /proc."""
    assert resident(tmp_path / "status") is None


@pytest.mark.parametrize(
    ("file", "text", "limit"),
    [
        ("memory.max", "4294967296\n", 2**32),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "4294967296\n", 2**32),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("other", "1", None),
    ],
)
def test_the_limit_is_the_control_group_s(tmp_path, file, text, limit):
    """Both versions of control groups are read, and what stands for no limit is none."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert memory_limit(tmp_path) == limit
