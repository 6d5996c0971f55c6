import os

import pytest

from server.inference.resources import available_cpus, memory_limit_bytes, resident_bytes

AFFINITY = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, AFFINITY),
        ({"cpu.max": f"{(AFFINITY + 5) * 100000} 100000\n"}, AFFINITY),
        ({}, AFFINITY),
    ],
    ids=["quota", "no-quota", "quota-above-the-affinity", "no-file"],
)
def test_available_cpus_respects_the_containers_quota(tmp_path, files, cpus):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert available_cpus(tmp_path) == cpus


@pytest.mark.parametrize(
    ("file", "text", "limit"),
    [
        ("memory.max", "4294967296\n", 2**32),
        ("memory.max", "max\n", None),
        ("other", "1", None),
    ],
)
def test_memory_limit_is_that_of_the_control_group(tmp_path, file, text, limit):
    (tmp_path / file).write_text(text)
    assert memory_limit_bytes(tmp_path) == limit


def test_resident_bytes_grow_with_allocations(tmp_path):
    before, allocated, after = resident_bytes(), bytearray(os.urandom(1) * (64 * 2**20)), resident_bytes()
    del allocated
    assert after[0] - before[0] > 60 * 2**20
    assert resident_bytes()[1] >= after[0]
    assert resident_bytes(tmp_path / "status") is None
