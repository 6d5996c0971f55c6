from bench.harness.serving import Server


def test_servers_have_addresses_that_no_client_is_given(tmp_path):
    """Linux takes ports of outgoing connections from 32768 on, and a server has to find its own free again."""
    servers = [Server(tmp_path, log=tmp_path / "log", settings={}) for _ in range(20)]
    assert all(1024 < server.port < 32768 for server in servers)
