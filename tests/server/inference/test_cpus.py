import os

from server.inference.cpus import available_cpus

AFFINITY = len(os.sched_getaffinity(0))


def test_a_quota_of_cgroups_2_limits_the_processors(tmp_path):
    """A container limited to one processor counts one, whatever the host has."""
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert available_cpus(tmp_path) == 1


def test_a_quota_of_cgroups_1_limits_the_processors(tmp_path):
    """The older files are read too."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert available_cpus(tmp_path) == 1


def test_without_a_quota_the_affinity_counts(tmp_path):
    """The word max, -1 and no file at all mean no quota."""
    assert available_cpus(tmp_path) == AFFINITY
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cpus(tmp_path) == AFFINITY
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert available_cpus(tmp_path) == AFFINITY


def test_a_quota_above_the_affinity_adds_none(tmp_path):
    """The smaller of the two counts."""
    (tmp_path / "cpu.max").write_text(f"{(AFFINITY + 5) * 100000} 100000\n")
    assert available_cpus(tmp_path) == AFFINITY
