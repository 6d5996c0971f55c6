import pytest
import urllib3

from bench.fleet import Replica, wait_until


@pytest.fixture
def replica(tmp_path):
    return Replica("one", tmp_path / "models", folder=tmp_path, settings={})


def test_servers_have_addresses_that_no_client_is_given(tmp_path):
    """Linux takes ports of outgoing connections from 32768 on, and a server has to find its own free again."""
    replicas = [Replica(str(number), tmp_path, folder=tmp_path, settings={}) for number in range(20)]
    assert all(1024 < replica.port < 32768 for replica in replicas)


def test_a_server_that_does_not_answer_is_not_ready(replica):
    """Nor does it have a version, or health."""
    assert (replica.ready, replica.version, replica.health()) == (False, None, {})


def test_a_server_that_was_not_started_has_no_process(replica):
    """The error says what to do."""
    with pytest.raises(RuntimeError, match=r"start\(\)"):
        replica.kill()


def test_waiting_ends_and_says_for_what():
    """What does not come is named."""
    with pytest.raises(RuntimeError, match=r"waited 0 s for spring"):
        wait_until(lambda: False, "spring", timeout_s=0)


def test_without_a_server_nothing_is_measured(replica):
    """Figures of a server that is gone are an error, not zeros."""
    with pytest.raises(urllib3.exceptions.HTTPError):
        replica.metrics()
