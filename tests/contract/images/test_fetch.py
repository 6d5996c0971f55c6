import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import contract.images.connections
import contract.images.local
from bench.harness.hosts import endless, host, raw, reply, silence, trickle
from bench.hostile.references import LOOPBACK, NON_PUBLIC
from contract.errors import FetchError, TemporaryFetchError
from contract.images.addresses import is_public
from server.settings import Settings
from tests.contract.images.conftest import IMAGE, PUBLIC_ADDRESS, UPLOAD, jwt, resolve_nothing


class TestLimits:
    def test_reconnects_after_the_host_closed_the_connection(self, label_studio, make_fetcher):
        label_studio.serve(UPLOAD, IMAGE)
        fetcher = make_fetcher()

        def drop_once(handler, request):
            label_studio.serve(UPLOAD, IMAGE)
            handler.close_connection = True

        label_studio.answers[UPLOAD] = drop_once
        assert fetcher.fetch(UPLOAD) == IMAGE
        assert len(label_studio.requests) == 2

    @pytest.mark.parametrize(
        "answer",
        [
            reply(bytes(1000), content_length=str(10**12)),
            endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + bytes(4096) + b"\r\n"),
        ],
        ids=["announced", "endless"],
    )
    def test_stops_reading_at_the_size_limit(self, label_studio, make_fetcher, answer):
        """Content-Length is checked before reading the body; the limit itself is allowed."""
        label_studio.serve("/data/upload/1/b.png", bytes(1000))
        label_studio.answers[UPLOAD] = answer
        fetcher = make_fetcher(max_bytes=1000)
        assert len(fetcher.fetch("/data/upload/1/b.png")) == 1000
        with pytest.raises(FetchError, match="more than 1000 bytes"):
            fetcher.fetch(UPLOAD)

    @pytest.mark.parametrize(
        "sent",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        ],
    )
    def test_truncated_body_is_a_temporary_error(self, label_studio, make_fetcher, sent):
        """Fewer bytes than announced, or none before the connection closes, as when a host shuts down.

        An announced length of 0 is an empty file.
        """
        label_studio.answers[UPLOAD] = raw(sent)
        fetcher = make_fetcher()
        with pytest.raises(TemporaryFetchError, match="broke off"):
            fetcher.fetch(UPLOAD)
        label_studio.answers[UPLOAD] = reply(b"")
        assert fetcher.fetch(UPLOAD) == b""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "answer",
        [
            silence(),
            silence(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf"),
            *(
                trickle(b"HTTP/1.1 200 OK\r\n" + head, every_s=0.02)
                for head in (
                    b"X-Slow: ",
                    b"Content-Length: 1000000\r\n\r\n",
                    b"Connection: close\r\n\r\n",
                    b"Transfer-Encoding: chunked\r\n\r\n",
                )
            ),
        ],
        ids=["silent", "silent-in-body", "head", "body", "body-of-unknown-length", "chunk-size"],
    )
    def test_gives_up_on_silent_and_trickling_hosts(self, label_studio, make_fetcher, answer):
        """A byte now and then resets a socket's timeout, but not that of the headers or the image."""
        label_studio.answers[UPLOAD] = answer
        with pytest.raises(TemporaryFetchError, match="took too long to answer"):
            make_fetcher(read_timeout_s=0.2, total_timeout_s=0.4).fetch(UPLOAD)
        assert len(label_studio.requests) == 1
        assert not label_studio.stopping.is_set()

    @pytest.mark.parametrize(("left_s", "requests"), [(-1, 0), (0.2, 1)])
    def test_deadline_shortens_the_timeouts(self, label_studio, make_fetcher, left_s, requests):
        """No request is sent after the deadline."""
        label_studio.answers[UPLOAD] = lambda *_: label_studio.stopping.wait(20)
        with pytest.raises(TemporaryFetchError, match=r"took too long|in time"):
            make_fetcher().fetch_if_changed(UPLOAD, deadline=time.monotonic() + left_s)
        assert len(label_studio.requests) == requests
        assert not label_studio.stopping.is_set()

    def test_waits_for_another_threads_token_until_the_deadline(self, label_studio, make_fetcher):
        exchanging = threading.Event()

        def slow(handler, request):
            exchanging.set()
            label_studio.stopping.wait(20)
            handler.close_connection = True

        label_studio.answers["/api/token/refresh/"] = slow
        fetcher = make_fetcher(api_token=jwt("refresh"), read_timeout_s=1.0)
        with ThreadPoolExecutor(1) as other:
            first = other.submit(fetcher.fetch, UPLOAD)
            assert exchanging.wait(10)
            with pytest.raises(FetchError, match="takes too long to issue an access token"):
                fetcher.fetch_if_changed(UPLOAD, deadline=time.monotonic() + 0.1)
            label_studio.stopping.set()
            assert isinstance(first.exception(10), FetchError)

    def test_compressed_bodies_are_not_decompressed(self, label_studio, make_fetcher):
        label_studio.serve(UPLOAD, IMAGE, content_encoding="gzip")
        assert make_fetcher().fetch(UPLOAD) == IMAGE
        assert label_studio.requests[0].headers["Accept-Encoding"] == "identity"

    def test_ignores_proxies_of_the_environment(self, label_studio, other_host, make_fetcher, monkeypatch):
        """A proxy would resolve names itself, and bypass the check of the address."""
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, other_host.url)
        label_studio.serve(UPLOAD, IMAGE)
        assert make_fetcher().fetch(UPLOAD) == IMAGE
        assert not other_host.requests


class TestAddresses:
    @pytest.mark.parametrize("name", [each for each in (*LOOPBACK, *NON_PUBLIC) if each != "localhost."])
    def test_never_connects_to_non_public_addresses(self, make_fetcher, monkeypatch, name):
        """Private, local or multicast ones, in any notation."""
        monkeypatch.setattr(contract.images.connections, "create_connection", lambda *_, **__: pytest.fail("connected"))
        with pytest.raises(FetchError, match="LABELNEXT_ALLOWED_ORIGINS") as caught:
            make_fetcher(label_studio_url="http://10.0.0.9:8080").fetch(f"http://{name}/a.png")
        assert not caught.value.later

    @pytest.mark.parametrize(
        "address",
        [PUBLIC_ADDRESS, "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34", "64:ff9b::93.184.216.34"],
    )
    def test_public_addresses_are_public(self, address):
        assert is_public(address)

    @pytest.mark.parametrize("family", ["::1", "0:0:0:0:0:0:0:1"])
    def test_advised_origin_can_be_allowed(self, make_fetcher, family):
        if not socket.has_dualstack_ipv6():
            pytest.skip("this machine has no IPv6")
        with host(address="") as everywhere:
            everywhere.serve("/a.png", IMAGE)
            url = f"http://[{family}]:{everywhere.port}/a.png"
            with pytest.raises(FetchError) as caught:
                make_fetcher().fetch(url)
            [advised] = re.findall(r"add (\S+) to LABELNEXT_ALLOWED_ORIGINS", str(caught.value))
            assert Settings.read({"LABELNEXT_ALLOWED_ORIGINS": f"{advised}/"}).allowed_origins == (advised,)
            assert make_fetcher(allowed_origins=(advised,)).fetch(url) == IMAGE

    @pytest.fixture
    def connected(self, other_host, monkeypatch):
        """The addresses connected to, all of which lead to `other_host`."""
        connected = []

        def connect(address, timeout, **_):
            connected.append(address)
            return socket.create_connection(("127.0.0.1", other_host.port), timeout)

        monkeypatch.setattr(contract.images.connections, "create_connection", connect)
        return connected

    def test_connects_to_the_address_that_was_checked(self, other_host, connected, make_fetcher):
        """The name is resolved once, so that another result of a second look-up has no effect."""
        other_host.serve("/a.png", IMAGE)
        answers = iter([[PUBLIC_ADDRESS], ["127.0.0.1"]])
        assert make_fetcher(resolve=lambda host, port: next(answers)).fetch("http://rebinding.test:81/a.png") == IMAGE
        assert connected == [(PUBLIC_ADDRESS, 81)]
        assert other_host.requests[0].headers["Host"] == "rebinding.test:81"

    def test_rejects_redirects_into_the_private_network(self, other_host, connected, make_fetcher):
        """Or by a name, if one of its addresses is private."""
        other_host.serve("/a.png", status=302, location="http://169.254.169.254/latest/meta-data/")
        names = {"images.test": [PUBLIC_ADDRESS], "mixed.test": [PUBLIC_ADDRESS, "10.0.0.1"]}
        fetcher = make_fetcher(resolve=lambda host, port: names.get(host, [host]))
        with pytest.raises(FetchError, match=re.escape("169.254.169.254 has an address that is not public")):
            fetcher.fetch("http://images.test/a.png")
        assert len(other_host.requests) == 1
        with pytest.raises(FetchError, match=re.escape("mixed.test has an address that is not public")):
            fetcher.fetch("http://mixed.test/a.png")
        assert len(other_host.requests) == 1

    @pytest.mark.parametrize(
        ("location", "message"),
        [
            *((url, "not a URL") for url in ("file:///etc/passwd", "data:,x", "http://[bad", "gopher://a/")),
            ("/data/upload/" + "a" * 9000, "longer than 8192 characters"),
        ],
        ids=["file", "data", "bad", "gopher", "long"],
    )
    def test_rejects_redirects_to_anything_but_http(self, label_studio, make_fetcher, location, message):
        """A host cannot redirect to our disk; limits of references apply to the new address."""
        label_studio.serve(UPLOAD, status=302, location=location)
        with pytest.raises(FetchError, match=f"redirects to an address that is {message}"):
            make_fetcher().fetch(UPLOAD)

    def test_follows_at_most_three_redirects(self, label_studio, make_fetcher):
        for hop in range(5):
            label_studio.serve(f"/data/upload/{hop}", status=302, location=f"/data/upload/{hop + 1}")
        label_studio.serve("/data/upload/4", IMAGE)
        fetcher = make_fetcher()
        assert fetcher.fetch("/data/upload/1") == IMAGE
        with pytest.raises(FetchError, match="more than 3 times"):
            fetcher.fetch("/data/upload/0")


class TestTemporaryErrors:
    @pytest.mark.parametrize(
        ("status", "is_temporary"),
        [(429, 1), (408, 1), (500, 1), (502, 1), (503, 1), (504, 1), (404, 0), (410, 0), (403, 0), (401, 0), (400, 0)],
    )
    def test_which_statuses_are_temporary(self, label_studio, make_fetcher, status, is_temporary):
        label_studio.serve(UPLOAD, status=status)
        with pytest.raises(FetchError, match=f"answered {status}") as caught:
            make_fetcher().fetch(UPLOAD)
        assert (caught.value.later, caught.value.code) == (bool(is_temporary), "fetch")

    def test_unreachable_host_is_a_temporary_error(self, make_fetcher):
        """A closed port, or an unknown name while a container restarts; the message names the host."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            closed = f"http://127.0.0.1:{server.getsockname()[1]}"
        fetcher = make_fetcher(allowed_origins=(closed,), resolve=resolve_nothing)
        for url in (f"{closed}/a.png", "http://unknown.test/a.png"):
            with pytest.raises(TemporaryFetchError, match=f"{re.escape(url)} cannot be reached"):
                fetcher.fetch(url)


def test_messages_are_one_line_of_limited_length(make_fetcher):
    """References are untrusted, and must not forge log lines."""
    with pytest.raises(FetchError) as caught:
        make_fetcher().fetch("nonsense\n2026-11-22 ERROR forged" + "x" * 10_000)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
