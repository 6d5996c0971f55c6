import pytest

from server.http.auth import OPEN
from tests.server.conftest import CONFIG
from tests.server.http.test_auth import REQUESTS, is_in, send

EVENT = {"action": "START_TRAINING", "project": {"id": 3}}
SETUP = {"project": "3.1", "schema": CONFIG}


@pytest.fixture
def client(serve):
    return serve(
        label_studio_url="http://label-studio:8080",
        label_studio_public_url="https://labels.example.org:443/studio",
        allowed_hosts=("labelnext.example.org",),
    )


def test_routes_except_health_and_metrics_refuse_foreign_host_names(client, published):
    """A web page could point its own name at the server (DNS rebinding)."""
    for route in REQUESTS:
        reply = send(client, route, published.current(), Host="evil.test")
        assert reply.status_code == (200 if is_in(route, OPEN) else 421), route
        if not is_in(route, OPEN):
            assert reply.json["error"] == "misdirected_request"
            assert "LABELNEXT_ALLOWED_HOSTS" in reply.json["detail"]


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:9090", "127.0.0.1:9090", "10.1.2.3", "[::1]", "[fd00::2]:9090"),
        *("server:9090", "labelnext_server_1", "SERVER", "server.", "host.docker.internal:9090"),
        *("labelnext-server.labelnext.svc", "a.b.svc.cluster.local:9090", "page.localhost"),
        *("labelnext.example.org", "LabelNext.Example.org:443", "labelnext.example.org."),
    ],
)
def test_ip_addresses_local_names_and_allowed_hosts_are_accepted(client, host):
    assert client.get("/versions", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.test", "evil.test:9090", "127.0.0.1.evil.test", "localhost.evil.test", "other.example.org"),
        *("evil.labelnext.example.org", "localhost@evil.test", "[::1].evil.test", "[evil.test]", "evilsvc.test"),
        *("localhost, evil.test", "localhost:9090:evil.test", "localhost:", "a b", "\u00fc"),
        *("::1", "1.2.3", "256.1.1.1"),
    ],
)
def test_other_host_names_are_refused(client, host):
    assert client.get("/versions", environ_overrides={"HTTP_HOST": host}).status_code == 421


def test_a_wildcard_accepts_any_host_and_a_missing_host_is_accepted(serve, client):
    """HTTP/1.0 clients may omit the host, browsers never do."""
    assert serve(allowed_hosts=("*",)).get("/versions", headers={"Host": "evil.test"}).status_code == 200
    assert client.get("/versions", environ_overrides={"HTTP_HOST": ""}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://label-studio:8080", 200),
        ("https://labels.example.org", 200),
        ("http://localhost", 200),  # the server's own origin
        *((f"http://{host}", 403) for host in ("labels.example.org", "label-studio", "localhost:8080")),
        *((origin, 403) for origin in ("https://evil.test", "null", "", "http://localhost.evil.test")),
    ],
)
@pytest.mark.parametrize(("path", "body"), [("/webhook", EVENT), ("/setup", SETUP)])
def test_post_requires_no_origin_or_that_of_server_or_label_studio(client, path, body, origin, status):
    """Browsers send the page's origin, programs send none."""
    headers = {} if origin is None else {"Origin": origin}
    assert client.post(path, json=body, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        *((kind, 200) for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON")),
        *((kind, 415) for kind in ("text/plain", "text/plain; application/json", "application/jsonp", None)),
        *((kind, 415) for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=a")),
    ],
)
@pytest.mark.parametrize("path", ["/webhook", "/predict", "/score", "/setup"])
def test_post_requires_the_content_type_of_json(client, published, path, kind, status):
    """Browsers let pages send other types to any origin."""
    data = client.application.json.dumps({**REQUESTS[path][1], "version": published.current()})
    assert client.post(path, data=data, content_type=kind).status_code == status
