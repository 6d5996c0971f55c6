from bench.harness.serving import Server


def test_servers_avoid_ephemeral_ports(tmp_path):
    """A restarted server needs its port again; Linux assigns ports from 32768 to clients."""
    servers = [Server(tmp_path, log=tmp_path / "log", settings={}) for _ in range(20)]
    assert all(1024 < server.port < 32768 for server in servers)
