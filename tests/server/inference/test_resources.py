import os

import pytest

from server.inference.resources import available_cpus, memory_limit, resident

AFFINITY = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu.max": "max 100000\n"}, AFFINITY),
        ({"cpu.max": f"{(AFFINITY + 5) * 100000} 100000\n"}, AFFINITY),
        ({"cpu/cpu.cfs_quota_us": "-1"}, AFFINITY),
        ({}, AFFINITY),
    ],
    ids=["version-2", "version-1", "no-quota", "above-the-affinity", "no-quota-of-version-1", "no-files"],
)
def test_a_containers_quota_limits_the_processors(tmp_path, files, cpus):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert available_cpus(tmp_path) == cpus


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
def test_the_limit_of_memory_is_the_control_groups(tmp_path, file, text, limit):
    (tmp_path / "memory").mkdir()
    (tmp_path / file).write_text(text)
    assert memory_limit(tmp_path) == limit


def test_what_is_resident_grows_with_what_is_held(tmp_path):
    before, held, during = resident(), bytearray(os.urandom(1) * (64 * 2**20)), resident()
    del held
    assert during[0] - before[0] > 60 * 2**20
    assert resident()[1] >= during[0]
    assert resident(tmp_path / "status") is None
