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
from tests.contract.images.conftest import IMAGE, PUBLIC, UPLOAD, jwt, unknown


class TestLimits:
    def test_a_connection_that_the_host_closed_is_opened_again(self, home, make):
        home.serve(UPLOAD, IMAGE)
        fetcher = make(label_studio_url=home.url)

        def drop_once(handler, request):
            home.serve(UPLOAD, IMAGE)
            handler.close_connection = True

        home.answers[UPLOAD] = drop_once
        assert fetcher.fetch(UPLOAD) == IMAGE
        assert len(home.requests) == 2

    @pytest.mark.parametrize(
        "answer",
        [
            reply(bytes(1000), content_length=str(10**12)),
            endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + bytes(4096) + b"\r\n"),
        ],
        ids=["announced", "endless"],
    )
    def test_what_is_over_the_limit_is_not_read(self, home, make, answer):
        """Content-Length is checked before reading the body; the limit itself is allowed."""
        home.serve("/data/upload/1/b.png", bytes(1000))
        home.answers[UPLOAD] = answer
        fetcher = make(label_studio_url=home.url, max_bytes=1000)
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
    def test_a_body_cut_short_is_asked_for_again_later(self, home, make, sent):
        """Fewer bytes than announced, or none before the connection closes, as from a host that is shutting down.

        An announced length of 0 is an empty image.
        """
        home.answers[UPLOAD] = raw(sent)
        fetcher = make(label_studio_url=home.url)
        with pytest.raises(TemporaryFetchError, match="broke off"):
            fetcher.fetch(UPLOAD)
        home.answers[UPLOAD] = reply(b"")
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
    def test_a_silent_or_trickling_host_is_given_up(self, home, make, answer):
        """A byte now and then resets a socket's timeout, but not that of the headers or the image."""
        home.answers[UPLOAD] = answer
        with pytest.raises(TemporaryFetchError, match="took too long to answer"):
            make(label_studio_url=home.url, read_timeout_s=0.2, total_timeout_s=0.4).fetch(UPLOAD)
        assert len(home.requests) == 1
        assert not home.stopping.is_set()

    @pytest.mark.parametrize(("left_s", "asked"), [(-1, 0), (0.2, 1)])
    def test_the_deadline_shortens_the_time_outs(self, home, make, left_s, asked):
        """A host may not be silent longer than the caller can wait, and no request is sent after the deadline."""
        home.answers[UPLOAD] = lambda *_: home.stopping.wait(20)
        with pytest.raises(TemporaryFetchError, match=r"took too long|in time"):
            make(label_studio_url=home.url).fetch_if_changed(UPLOAD, deadline=time.monotonic() + left_s)
        assert len(home.requests) == asked
        assert not home.stopping.is_set()

    def test_a_thread_waits_for_anothers_token_only_until_its_deadline(self, home, make):
        exchanging = threading.Event()

        def slow(handler, request):
            exchanging.set()
            home.stopping.wait(20)
            handler.close_connection = True

        home.answers["/api/token/refresh/"] = slow
        fetcher = make(label_studio_url=home.url, api_token=jwt("refresh"), read_timeout_s=1.0)
        with ThreadPoolExecutor(1) as other:
            first = other.submit(fetcher.fetch, UPLOAD)
            assert exchanging.wait(10)
            with pytest.raises(FetchError, match="takes too long to issue an access token"):
                fetcher.fetch_if_changed(UPLOAD, deadline=time.monotonic() + 0.1)
            home.stopping.set()
            assert isinstance(first.exception(10), FetchError)

    def test_compressed_bodies_are_not_unpacked(self, home, make):
        home.serve(UPLOAD, IMAGE, content_encoding="gzip")
        assert make(label_studio_url=home.url).fetch(UPLOAD) == IMAGE
        assert home.requests[0].headers["Accept-Encoding"] == "identity"

    def test_proxies_of_the_environment_are_not_used(self, home, elsewhere, make, monkeypatch):
        """A proxy would resolve names itself, and bypass the check of the address."""
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, elsewhere.url)
        home.serve(UPLOAD, IMAGE)
        assert make(label_studio_url=home.url).fetch(UPLOAD) == IMAGE
        assert not elsewhere.requests


class TestAddresses:
    @pytest.mark.parametrize("name", [each for each in (*LOOPBACK, *NON_PUBLIC) if each != "localhost."])
    def test_addresses_off_the_public_internet_are_not_asked(self, make, monkeypatch, name):
        """In any notation, connections to private, local or multicast addresses are never opened."""
        monkeypatch.setattr(contract.images.connections, "create_connection", lambda *_, **__: pytest.fail("connected"))
        with pytest.raises(FetchError, match="LABELNEXT_ALLOWED_ORIGINS") as caught:
            make(label_studio_url="http://10.0.0.9:8080").fetch(f"http://{name}/a.png")
        assert not caught.value.later

    @pytest.mark.parametrize(
        "address", [PUBLIC, "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34", "64:ff9b::93.184.216.34"]
    )
    def test_public_addresses_are_public(self, address):
        assert is_public(address)

    @pytest.mark.parametrize("family", ["::1", "0:0:0:0:0:0:0:1"])
    def test_the_origin_that_is_advised_is_one_that_can_be_allowed(self, make, family):
        if not socket.has_dualstack_ipv6():
            pytest.skip("this machine has no IPv6")
        with host(address="") as everywhere:
            everywhere.serve("/a.png", IMAGE)
            url = f"http://[{family}]:{everywhere.port}/a.png"
            with pytest.raises(FetchError) as caught:
                make().fetch(url)
            [advised] = re.findall(r"add (\S+) to LABELNEXT_ALLOWED_ORIGINS", str(caught.value))
            assert Settings.read({"LABELNEXT_ALLOWED_ORIGINS": f"{advised}/"}).allowed_origins == (advised,)
            assert make(allowed_origins=(advised,)).fetch(url) == IMAGE

    @pytest.fixture
    def internet(self, elsewhere, monkeypatch):
        """Public addresses that lead to one loopback server; yields the addresses connected to."""
        connected = []

        def connect(address, timeout, **_):
            connected.append(address)
            return socket.create_connection(("127.0.0.1", elsewhere.port), timeout)

        monkeypatch.setattr(contract.images.connections, "create_connection", connect)
        return connected

    def test_the_connection_goes_to_the_address_that_was_checked(self, elsewhere, internet, make):
        """The name is resolved once, so that another result of a second look-up has no effect."""
        elsewhere.serve("/a.png", IMAGE)
        answers = iter([[PUBLIC], ["127.0.0.1"]])
        assert make(resolve=lambda host, port: next(answers)).fetch("http://rebinding.test:81/a.png") == IMAGE
        assert internet == [(PUBLIC, 81)]
        assert elsewhere.requests[0].headers["Host"] == "rebinding.test:81"

    def test_a_redirect_into_the_private_network_is_refused(self, home, elsewhere, internet, make):
        """Also by a name with one private address."""
        elsewhere.serve("/a.png", status=302, location="http://169.254.169.254/latest/meta-data/")
        names = {"images.test": [PUBLIC], "both.test": [PUBLIC, "10.0.0.1"]}
        fetcher = make(resolve=lambda host, port: names.get(host, [host]), label_studio_url=home.url)
        with pytest.raises(FetchError, match=re.escape("169.254.169.254 has an address that is not public")):
            fetcher.fetch("http://images.test/a.png")
        assert len(elsewhere.requests) == 1
        with pytest.raises(FetchError, match=re.escape("both.test has an address that is not public")):
            fetcher.fetch("http://both.test/a.png")
        assert len(elsewhere.requests) == 1

    @pytest.mark.parametrize(
        ("location", "message"),
        [
            *((other, "not a URL") for other in ("file:///etc/passwd", "data:,x", "http://[bad", "gopher://a/")),
            ("/data/upload/" + "a" * 9000, "longer than 8192 characters"),
        ],
        ids=["file", "data", "bad", "gopher", "long"],
    )
    def test_a_redirect_to_anything_but_http_is_refused(self, home, make, location, message):
        """A host cannot redirect to our disk; limits of references apply to the new address."""
        home.serve(UPLOAD, status=302, location=location)
        with pytest.raises(FetchError, match=f"redirects to an address that is {message}"):
            make(label_studio_url=home.url).fetch(UPLOAD)

    def test_three_redirects_are_followed_and_no_more(self, home, make):
        for hop in range(5):
            home.serve(f"/data/upload/{hop}", status=302, location=f"/data/upload/{hop + 1}")
        home.serve("/data/upload/4", IMAGE)
        fetcher = make(label_studio_url=home.url)
        assert fetcher.fetch("/data/upload/1") == IMAGE
        with pytest.raises(FetchError, match="more than 3 times"):
            fetcher.fetch("/data/upload/0")


class TestLater:
    """Failures that may be temporary."""

    @pytest.mark.parametrize(
        ("status", "later"),
        [(429, 1), (408, 1), (500, 1), (502, 1), (503, 1), (504, 1), (404, 0), (410, 0), (403, 0), (401, 0), (400, 0)],
    )
    def test_a_host_that_is_busy_or_broken_may_answer_later(self, home, make, status, later):
        home.serve(UPLOAD, status=status)
        with pytest.raises(FetchError, match=f"answered {status}") as caught:
            make(label_studio_url=home.url).fetch(UPLOAD)
        assert (caught.value.later, caught.value.code) == (bool(later), "fetch")

    def test_a_host_that_is_down_may_answer_later(self, make):
        """A closed port, or an unknown name while a container restarts; the message names the host."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            closed = f"http://127.0.0.1:{server.getsockname()[1]}"
        fetcher = make(allowed_origins=(closed,), resolve=unknown)
        for url in (f"{closed}/a.png", "http://gone.test/a.png"):
            with pytest.raises(TemporaryFetchError, match=f"{re.escape(url)} cannot be reached"):
                fetcher.fetch(url)


class TestMessages:
    def test_messages_are_one_line_of_bounded_length(self, make):
        """References are untrusted, and must not forge log lines."""
        with pytest.raises(FetchError) as caught:
            make().fetch("nonsense\n2026-11-22 ERROR forged" + "x" * 10_000)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
