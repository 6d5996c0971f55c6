"""Hostile answers of allowed image hosts: redirects, slow, endless and malformed answers, and wrong certificates."""

import gzip
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from bench.harness import hosts
from bench.harness.hosts import Answer
from bench.hostile import pictures
from bench.hostile.case import MEBIBYTE, PLAIN, Case, Kind, Outcome, Refused, refused_decode, refused_fetch
from bench.hostile.references import PRIVATE, TOO_LARGE, reference_case
from bench.hostile.site import MANY_ADDRESSES, Escaped, Site, can_make_certificates, redirect, send, send_picture

_DISCONNECTED = refused_fetch("cannot be reached, or the connection broke off")
_ENDED = refused_fetch("broke off|more than")
_TIMED_OUT = refused_fetch("took too long to answer")
_TOO_MANY_REDIRECTS = refused_fetch("redirects more than 3 times")
_OTHER_FORMAT = refused_decode("expected one of")

_MAX_DELAY_S = 5.0
_UNKNOWN_HOST_FETCHES = 8
"""The number of images that the server fetches at a time from hosts that are not known to be responsive."""

_TO_PRIVATE = {
    "to-loopback": "http://127.0.0.1:{port}/a.png",
    "to-loopback-ipv6": "http://[::1]:{port}/a.png",
    "to-metadata": "http://169.254.169.254/latest/meta-data/",
    "without-scheme": "//127.0.0.1:{port}/a.png",
    "with-user": "http://{allowed}@127.0.0.1:{port}/a.png",
}
_TO_OTHER_SCHEMES = ("file:///etc/passwd", "gopher://127.0.0.1:6379/_FLUSHALL", "data:image/png;base64,AAAA")
_OK = b"HTTP/1.1 200 OK\r\n"
_OK_WITH_LENGTH = _OK + b"Content-Length: 1000000\r\n\r\n"
_OK_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"


def cases() -> list[Case]:
    """Return the cases of this module."""
    return [*_redirects(), *_slow_hosts(), *_answers(), *_tls()]


def answer_case(name: str, outcome: Outcome, make: Answer | str, *, status: str = "302 Found") -> Case:
    """Return a case of an answer of an allowed host; a string is the target of a redirect."""

    def serve(site: Site) -> str:
        return site.images.serve(f"/{name}", redirect(site.fill(make), status) if isinstance(make, str) else make)

    return reference_case(name, outcome, serve)


def slow_answer_case(name: str, outcome: Outcome, make: Answer, *, seconds: float = 15) -> Case:
    """Return a case of a slow answer, from an address that no other case uses."""
    case = reference_case(name, outcome, lambda site: site.serve_slowly(f"/{name}", make), seconds=seconds)
    return replace(case, patient=True)


def _redirects() -> list[Case]:
    no_url = refused_fetch("redirects to an address that is not a URL")
    broken = refused_fetch("redirects to an address|broke off")
    line_break = refused_fetch("answered 404|redirects to an address|broke off|cannot be reached")
    return [
        *(answer_case(f"redirect-{name}", PRIVATE, location) for name, location in _TO_PRIVATE.items()),
        *(answer_case(f"redirect-to-{location.partition(':')[0]}", no_url, location) for location in _TO_OTHER_SCHEMES),
        answer_case("redirect-308", PRIVATE, _TO_PRIVATE["to-loopback"], status="308 Moved"),
        answer_case("redirect-without-location", refused_fetch("answered 302"), send(status="302 Found")),
        answer_case("redirect-loop", _TOO_MANY_REDIRECTS, redirect("/redirect-loop")),
        reference_case("redirect-chain-of-4", _TOO_MANY_REDIRECTS, partial(_chain, 4)),
        reference_case("redirect-chain-of-3", PLAIN, partial(_chain, 3)),
        answer_case("redirect-of-64-kb", broken, redirect("/" + "a" * 60_000)),
        answer_case("redirect-with-line-break", line_break, redirect("/gone\r\n Host: evil")),
        reference_case("token-to-allowed-origin", PLAIN, "http://{allowed}/data/upload/1/a.png"),
        reference_case("token-through-redirect", PLAIN, "/data/upload/1/away.png"),
        answer_case(
            "token-redirected-to-api", refused_fetch("answered 403"), "http://127.0.0.1:{studio}/api/projects/"
        ),
    ]


def _chain(length: int, site: Site) -> str:
    for hop in range(length):
        site.images.serve(f"/chain-{length}-{hop}", redirect(f"/chain-{length}-{hop + 1}"))
    site.images.serve(f"/chain-{length}-{length}", send_picture())
    return f"{site.images.url}/chain-{length}-0"


def _slow_hosts() -> list[Case]:
    """Slow hosts, alone and in numbers that could delay others."""
    late_or_large = refused_fetch("took too long|more than 20971520")
    late_or_broken = refused_fetch("took too long|broke off")
    slow = 90.0  # the server's time limit for an image, with a margin
    tiny_chunks = hosts.endless(_OK_CHUNKED, b"1\r\na\r\n" * 1_000)
    continued = hosts.endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
    return [
        slow_answer_case("host-silent", _TIMED_OUT, hosts.silence()),
        slow_answer_case("host-silent-in-head", _TIMED_OUT, hosts.silence(_OK)),
        slow_answer_case("host-silent-in-body", _TIMED_OUT, hosts.silence(_OK_WITH_LENGTH + pictures.plain()[:100])),
        slow_answer_case("host-trickles-head", _TIMED_OUT, hosts.trickle(_OK + b"X-Slow: ")),
        slow_answer_case("host-trickles-body", _TIMED_OUT, hosts.trickle(_OK_WITH_LENGTH), seconds=slow),
        slow_answer_case("body-endless-tiny-chunks", late_or_large, tiny_chunks, seconds=slow),
        slow_answer_case("head-endless-100-continue", late_or_broken, continued, seconds=30.0),  # at most two attempts
        Case("host-silent-at-64-addresses", Kind.ADDRESS, _many_addresses, seconds=120, patient=True),
        Case("host-silent-for-200-images", Kind.ADDRESS, _many_silent, seconds=120, patient=True),
    ]


def _answers() -> list[Case]:
    """Answers with a malformed head or body, and pictures with odd headers."""
    half = pictures.plain()[:100]
    chunks = b"10000\r\n" + bytes(65_536) + b"\r\n"
    gzipped = gzip.compress(pictures.plain())
    raw = {
        "length-twice": (_DISCONNECTED, _OK + b"Content-Length: 10\r\nContent-Length: 20\r\n\r\n" + half),
        "chunk-garbage": (_DISCONNECTED, _OK_CHUNKED + b"size\r\n" + half),
        "chunk-of-16-exabytes": (_ENDED, _OK_CHUNKED + b"ffffffffffffffff\r\n" + half),
        "chunk-negative": (_ENDED, _OK_CHUNKED + b"-1\r\n" + half),
        "http-0-9": (_DISCONNECTED, pictures.plain()),
        "http-garbage": (_DISCONNECTED, bytes(MEBIBYTE)),
        "http-nothing": (_DISCONNECTED, b""),
        "status-204": (refused_fetch("answered 204"), b"HTTP/1.1 204 No Content\r\n\r\n"),
        "status-304": (refused_fetch("answered 304"), b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n'),
    }
    return [
        *(answer_case(name, outcome, hosts.raw(data)) for name, (outcome, data) in raw.items()),
        answer_case("body-endless", TOO_LARGE, hosts.endless(_OK + b"Connection: close\r\n\r\n", bytes(65_536))),
        answer_case("body-endless-chunks", TOO_LARGE, hosts.endless(_OK_CHUNKED, chunks)),
        answer_case("head-endless", _DISCONNECTED, hosts.endless(_OK, b"X-Header: a\r\n" * 100)),
        answer_case("head-endless-line", _DISCONNECTED, hosts.endless(_OK + b"X-Header: ", b"a" * 65_536)),
        answer_case("length-too-large", TOO_LARGE, send(half, content_length="10000000000000")),
        answer_case("length-longer-than-body", _DISCONNECTED, send(half, content_length="5000")),
        answer_case(
            "length-shorter-than-body", refused_decode("cannot be decoded"), send_picture(content_length="100")
        ),
        answer_case("length-negative", PLAIN, send_picture(content_length="-1")),
        answer_case("length-not-a-number", PLAIN, send_picture(content_length="many")),
        answer_case("body-gzip", _OTHER_FORMAT, send(gzipped, content_encoding="gzip")),
        reference_case("body-gzip-bomb", _OTHER_FORMAT, _gzip_bomb, seconds=20),
        answer_case("status-206", refused_fetch("answered 206"), send(half, status="206 Partial Content")),
        answer_case(
            "status-401", refused_fetch("answered 401"), send(status="401 None", www_authenticate="Basic realm=a")
        ),
        answer_case("status-999", refused_fetch("answered 999|broke off"), send(status="999 Nonsense")),
        answer_case("status-500-with-picture", refused_fetch("answered 500"), send_picture(status="500 Error")),
        answer_case("etag-with-line-break", PLAIN, send_picture(etag='"a\tb"')),
    ]


def _gzip_bomb(site: Site) -> str:
    bomb = gzip.compress(bytes(200 * MEBIBYTE))
    return site.images.serve("/body-gzip-bomb", send(bomb, content_encoding="gzip"))


def _tls() -> list[Case]:
    """TLS with a certificate for localhost, if openssl is installed."""
    with_certificate = [
        reference_case("tls-right-name", PLAIN, "https://localhost:{tls}/a.png"),
        reference_case("tls-wrong-name", refused_fetch("broke off"), "https://127.0.0.1:{tls}/a.png"),
        reference_case("tls-host-over-http", PRIVATE, "http://127.0.0.1:{tls}/a.png"),
    ]
    return [
        *(with_certificate if can_make_certificates() else []),
        reference_case("http-host-over-tls", PRIVATE, "https://{allowed}/a.png"),
    ]


def _many_addresses(site: Site, _payload: None) -> None:
    """Request images from more silent hosts than there are threads; images of other hosts must not be delayed."""
    site.images.serve("/silent.png", hosts.silence())
    silent = [
        f"http://{address}:{site.images.port}/silent.png?{number}" for number in range(3) for address in MANY_ADDRESSES
    ]
    good = [site.images.serve(f"/good-{number}.png", send_picture()) for number in range(5)]
    _score_during(site, silent, good, lambda: len(site.images.requests_to("/silent.png")) >= _UNKNOWN_HOST_FETCHES)


def _many_silent(site: Site, _payload: None) -> None:
    """Request 200 images from a silent host, so that half of the fetch threads hang; others must not be delayed."""
    url = site.serve_slowly("/hanging.png", hosts.silence())
    silent = [f"{url}?{number}" for number in range(200)]
    good = ["/data/local-files/?d=sub/good.png"]
    _score_during(site, silent, good, lambda: bool(site.images.requests_to("/hanging.png")))


def _score_during(site: Site, silent: list[str], good: list[str], hangs: Callable[[], bool]) -> None:
    """Check that good images are scored without delay while silent ones hang, and that silent ones are refused."""
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(site.score, silent)
        while not hangs():
            time.sleep(0.05)
        for each in good:
            started = time.perf_counter()
            PLAIN.check(site, site.score_among_good(each))
            if (seconds := time.perf_counter() - started) > _MAX_DELAY_S:
                raise Escaped(f"a good image waited {seconds:.1f} s for images of another host")
        for result in hanging.result():
            Refused("(fetch|expired)", "").check(site, result)
