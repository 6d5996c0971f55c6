from bench.harness.serving import Server


def test_servers_have_no_ephemeral_ports(tmp_path):
    """A restarted server must find its port free; Linux gives clients ports from 32768 on."""
    servers = [Server(tmp_path, log=tmp_path / "log", settings={}) for _ in range(20)]
    assert all(1024 < server.port < 32768 for server in servers)
