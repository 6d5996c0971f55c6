"""References in tasks: addresses that must not be asked, hosts that misbehave, and paths that lead astray."""

import base64
import gzip
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from textwrap import wrap

from bench.hostile import hosts, pictures
from bench.hostile.case import Attack, Case, Kind, Outcome, Refused, Scored, refused_decode, refused_fetch
from bench.hostile.hosts import Answer
from bench.hostile.site import CROWD, Escaped, Site, data_uri
from bench.hostile.tls import can_make_certificates

_PRIVATE = refused_fetch("is not on the public internet")
_UNKNOWN = refused_fetch("import the task again|not a URL|is not on the public internet|cannot be reached")
_NOT_BELOW = refused_fetch("the local file .* (is not a file below|cannot be read)")
_NO_IMAGE_PATH = refused_fetch("a path on which Label Studio serves images")
_BROKE_OFF = refused_fetch("cannot be reached or broke off")
_LATE = refused_fetch("took too long to answer")
_TOO_LARGE = refused_fetch("more than 20971520 bytes")
_ALLOWED_ONE = refused_fetch("answered 404")  # by the allowed origin, as browsers read it too
_PLAIN = Scored(pictures.plain)

_UNHINDERED_S = 5.0
_PLACES = 8
"""For images of hosts that the server does not know, at a time."""

_THIS_MACHINE = {
    "dotted": "127.0.0.1",
    "another-of-127": "127.0.0.2",
    "hexadecimal": "0x7f000001",
    "hexadecimal-parts": "0x7f.0.0.0x1",
    "decimal": "2130706433",
    "short": "127.1",
    "octal": "0177.0.0.1",
    "zero": "0",
    "any": "0.0.0.0",  # noqa: S104  # what is asked for, not listened on
    "localhost": "localhost",
    "localhost-in-capitals": "LOCALHOST",
    "localhost-with-dot": "localhost.",
    "ipv6": "[::1]",
    "ipv6-in-full": "[0:0:0:0:0:0:0:1]",
    "ipv6-any": "[::]",
    "ipv6-mapped": "[::ffff:127.0.0.1]",
    "ipv6-mapped-hexadecimal": "[::ffff:7f00:1]",
    "ipv6-compatible": "[::127.0.0.1]",
}
_ELSEWHERE = {
    "10": "10.0.0.1",
    "172-16": "172.16.0.1",
    "192-168": "192.168.0.1",
    "link-local": "169.254.7.7",
    "metadata": "169.254.169.254",
    "metadata-decimal": "2852039166",
    "metadata-ipv6": "[fd00:ec2::254]",
    "metadata-mapped": "[::ffff:169.254.169.254]",
    "metadata-azure": "168.63.129.16",
    "metadata-alibaba": "100.100.100.200",
    "metadata-oracle": "192.0.0.192",
    "shared": "100.64.0.1",
    "benchmarks": "198.18.0.1",
    "documentation": "192.0.2.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "ipv6-link-local": "[fe80::1]",
    "ipv6-site-local": "[fec0::1]",
    "ipv6-unique-local": "[fc00::1]",
    "ipv6-multicast": "[ff02::1]",
    "ipv6-documentation": "[2001:db8::1]",
    "ipv6-mapped-10": "[::ffff:10.0.0.1]",
    "ipv6-translated": "[::ffff:0:10.0.0.1]",
    "nat64": "[64:ff9b::10.0.0.1]",
    "nat64-local": "[64:ff9b:1::10.0.0.1]",
    "6to4": "[2002:a00:1::1]",
    "teredo": "[2001:0:a00:1::]",
    "isatap": "[2606:2800:220:1:0:5efe:10.0.0.1]",
}


def reference(
    name: str,
    sent: str,
    outcome: Outcome,
    make: Callable[[Site], object],
    *,
    seconds: float = 10,
    kind: Kind = Kind.ADDRESS,
) -> Case:
    """A reference in a task between two good ones."""

    def prepare(site: Site) -> Attack:
        made = make(site)
        return lambda: outcome.check(site, site.score_among_good(made))

    return Case(name, kind, sent, outcome.must, prepare, seconds)


def answer(name: str, sent: str, outcome: Outcome, make: Callable[[Site], Answer], *, seconds: float = 10) -> Case:
    """An answer of a host that may be asked."""
    return reference(name, sent, outcome, lambda site: site.images.serve(f"/{name}", make(site)), seconds=seconds)


def slow_answer(name: str, sent: str, outcome: Outcome, make: Answer, *, seconds: float = 15) -> Case:
    """An answer that takes its time, of a host of its own."""
    case = reference(name, sent, outcome, lambda site: site.slow_host().serve(f"/{name}", make), seconds=seconds)
    return replace(case, patient=True)


def cases() -> list[Case]:
    """Every reference."""
    return [*_addresses(), *_spellings(), *_redirects(), *_answers(), *_tokens(), *_local_files(), *_no_addresses()]


def _addresses() -> Iterator[Case]:
    for name, address in _THIS_MACHINE.items():
        yield reference(
            f"this-machine-{name}",
            f"http://{address}",
            _UNKNOWN if name in {"localhost-with-dot"} else _PRIVATE,
            partial(_at_canary, address),
        )
    for name, address in _ELSEWHERE.items():
        yield reference(f"private-{name}", f"http://{address}", _PRIVATE, partial(_always, f"http://{address}/a.png"))


def _spellings() -> Iterator[Case]:
    """Addresses that one parser may take for an allowed origin and another for something else."""
    for name, template in {
        "user-is-allowed-origin": "http://{allowed}@{canary}/a.png",
        "user-and-password": "http://{allowed}:80@{canary}/a.png",
        "backslash-before-at": "http://{allowed}\\@{canary}/a.png",
        "backslashes-before-host": "\\\\{canary}\\a.png",
        "backslashes-for-slashes": "http:\\\\{canary}\\a.png",
        "fragment-before-at": "http://{canary}#@{allowed}/a.png",
        "query-before-at": "http://{canary}?@{allowed}/a.png",
        "two-ats": "http://a@{allowed}@{canary}/a.png",
        "three-slashes": "http:///{canary}/a.png",
        "one-slash": "http:/{canary}/a.png",
        "no-slash": "http:{canary}/a.png",
        "scheme-in-capitals": "HTTP://{canary}/a.png",
        "space-before": " http://{canary}/a.png",
        "tab-in-host": "http://127.0.\t0.1:{port}/a.png",
        "newline-in-host": "http://127.0.\n0.1:{port}/a.png",
        "newline-before": "\nhttp://{canary}/a.png",
        "nul-in-host": "http://127.0.0.1\0.evil.test:{port}/a.png",
        "percent-in-host": "http://%31%32%37.0.0.1:{port}/a.png",
        "percent-nul-in-host": "http://127.0.0.1%00.evil.test:{port}/a.png",
        "space-in-host": "http://127.0.0.1 .evil.test:{port}/a.png",
        "full-width-digits": "http://\uff11\uff12\uff17.0.0.1:{port}/a.png",
        "circled-digits": "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460:{port}/a.png",
        "ideographic-full-stop": "http://127\u30020\u30020\u30021:{port}/a.png",
        "soft-hyphen": "http://local\u00adhost:{port}/a.png",
        "port-of-65537": "http://127.0.0.1:65537/a.png",
        "port-of-minus-1": "http://127.0.0.1:-1/a.png",
        "port-empty": "http://127.0.0.1:/a.png",
        "port-of-digits-elsewhere": "http://127.0.0.1:\u0661\u0662/a.png",
        "zone": "http://[fe80::1%25lo]:{port}/a.png",
        "bracket-open": "http://[::1:{port}/a.png",
        "line-in-path": "http://{canary}/a.png HTTP/1.1\r\nX-Injected: 1\r\n",
        "ten-dots": "http://{canary}../a.png",
        "no-host": "http://",
    }.items():
        yield reference(
            f"spelling-{name}",
            template.replace("{", "").replace("}", ""),
            _ALLOWED_ONE if name == "backslash-before-at" else _UNKNOWN,
            partial(_spell, template),
        )
    yield reference(
        "address-of-64-kb",
        "an address of 64 kB",
        refused_fetch("at most 8192"),
        lambda site: f"{site.images.url}/{'a' * 65_536}",
    )
    yield reference(
        "address-of-20-mb", "an address of 20 MB", refused_fetch("at most 8192"), lambda _: "http://" + "a" * 20_000_000
    )
    yield reference(
        "address-of-20-mb-of-ats", "20 million @", refused_fetch("at most 8192"), lambda _: "http://" + "@" * 20_000_000
    )
    yield reference(
        "address-with-secret-query", "a presigned address that answers 404", refused_fetch("answered 404"), _signed
    )


def _always(value: object, _: Site) -> object:
    return value


def _at_canary(address: str, site: Site) -> str:
    return f"http://{address}:{site.canary.port}/a.png"


def _at_studio(template: str, site: Site) -> str:
    return template.format(port=site.studio.port, canary=site.canary.port)


def _spell(template: str, site: Site) -> str:
    return template.format(
        allowed=f"127.0.0.1:{site.images.port}", canary=f"127.0.0.1:{site.canary.port}", port=site.canary.port
    )


def _signed(site: Site) -> str:
    return (
        site.images.serve("/signed", hosts.body(b"", status="404 Not Found")) + f"?signature={site.secrets.signature}"
    )


def _redirects() -> Iterator[Case]:
    for name, location in {
        "to-this-machine": "http://127.0.0.1:{port}/a.png",
        "to-this-machine-ipv6": "http://[::1]:{port}/a.png",
        "to-metadata": "http://169.254.169.254/latest/meta-data/",
        "without-scheme": "//127.0.0.1:{port}/a.png",
        "with-user": "http://{allowed}@127.0.0.1:{port}/a.png",
    }.items():
        yield answer(f"redirect-{name}", f"302 to {location}", _PRIVATE, partial(_redirect, location))
    for location in (
        "file:///etc/passwd",
        "ftp://127.0.0.1/a.png",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "dict://127.0.0.1/",
        "unix:///run/docker.sock",
    ):
        scheme = location.partition(":")[0]
        yield answer(
            f"redirect-to-{scheme}",
            f"302 to {location}",
            refused_fetch("redirects to what is not a URL"),
            partial(_redirect, location),
        )
    for status in (301, 303, 307, 308):
        yield answer(
            f"redirect-{status}-to-this-machine",
            f"{status} to this machine",
            _PRIVATE,
            partial(_redirect, "http://127.0.0.1:{port}/a.png", status=f"{status} Moved"),
        )
    yield answer(
        "redirect-without-location",
        "302 without a Location",
        refused_fetch("answered 302"),
        lambda _: hosts.body(b"", status="302 Found"),
    )
    yield answer(
        "redirect-loop",
        "302 to itself",
        refused_fetch("redirects more than 3 times"),
        lambda _: hosts.redirect("/redirect-loop"),
    )
    yield reference(
        "redirect-chain-of-4", "four redirects", refused_fetch("redirects more than 3 times"), partial(_chain, 4)
    )
    yield reference("redirect-chain-of-3", "three redirects", _PLAIN, partial(_chain, 3))
    yield answer(
        "redirect-of-64-kb",
        "302 to an address of 60 kB",
        refused_fetch("redirects to what is|broke off"),
        lambda _: hosts.redirect("/" + "a" * 60_000),
    )
    yield answer(
        "redirect-with-line-break",
        "302 to an address with a line break",
        refused_fetch("answered 404|redirects to what|broke off|cannot be reached"),
        lambda _: hosts.redirect("/gone\r\n Host: evil"),
    )


def _redirect(location: str, site: Site, *, status: str = "302 Found") -> Answer:
    location = location.replace("{port}", str(site.canary.port)).replace("{allowed}", f"127.0.0.1:{site.images.port}")
    return hosts.redirect(location, status=status)


def _chain(length: int, site: Site) -> str:
    for hop in range(length):
        site.images.serve(f"/chain-{length}-{hop}", hosts.redirect(f"/chain-{length}-{hop + 1}"))
    site.images.serve(f"/chain-{length}-{length}", hosts.body(pictures.plain()))
    return f"{site.images.url}/chain-{length}-0"


def _answers() -> Iterator[Case]:
    ok = b"HTTP/1.1 200 OK\r\n"
    half = pictures.plain()[:100]
    announced = ok + b"Content-Length: 1000000\r\n\r\n"
    open_ended = ok + b"Connection: close\r\n\r\n"
    chunked = ok + b"Transfer-Encoding: chunked\r\n\r\n"
    slow = 90.0  # what an image may take, and some more
    yield slow_answer("host-silent", "nothing at all", _LATE, hosts.silence())
    yield slow_answer("host-silent-in-head", "half a head", _LATE, hosts.silence(ok))
    yield slow_answer("host-silent-in-body", "half a body", _LATE, hosts.silence(announced + half))
    yield slow_answer(
        "host-trickles-head",
        "a byte of the head now and then",
        _LATE,
        hosts.trickle(ok + b"X-Slow: "),
    )
    yield slow_answer(
        "host-trickles-body", "a byte of the body now and then", _LATE, hosts.trickle(announced), seconds=slow
    )
    yield answer(
        "body-endless", "a body without an end", _TOO_LARGE, lambda _: hosts.endless(open_ended, bytes(65_536))
    )
    yield answer(
        "body-endless-chunks",
        "chunks without an end",
        _TOO_LARGE,
        lambda _: hosts.endless(chunked, b"10000\r\n" + bytes(65_536) + b"\r\n"),
    )
    yield slow_answer(
        "body-endless-tiny-chunks",
        "chunks of a byte without an end",
        refused_fetch("took too long|more than 20971520"),
        hosts.endless(chunked, b"1\r\na\r\n" * 1_000),
        seconds=slow,
    )
    yield answer(
        "head-endless", "header lines without an end", _BROKE_OFF, lambda _: hosts.endless(ok, b"X-Header: a\r\n" * 100)
    )
    yield answer(
        "head-endless-line",
        "a header line without an end",
        _BROKE_OFF,
        lambda _: hosts.endless(ok + b"X-Header: ", bytes(b"a" * 65_536)),
    )
    yield slow_answer(
        "head-continues-for-ever",
        "100 Continue without an end",
        refused_fetch("took too long|broke off"),
        hosts.endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    )
    yield answer(
        "length-too-large",
        "a Content-Length of 10 TB",
        _TOO_LARGE,
        lambda _: hosts.body(half, content_length="10000000000000"),
    )
    yield answer(
        "length-longer-than-body",
        "a Content-Length beyond the end",
        _BROKE_OFF,
        lambda _: hosts.body(half, content_length="5000"),
    )
    yield answer(
        "length-shorter-than-body",
        "a Content-Length before the end",
        refused_decode("cannot be decoded"),
        lambda _: hosts.body(pictures.plain(), content_length="100"),
    )
    yield answer(
        "length-negative", "a Content-Length of -1", _PLAIN, lambda _: hosts.body(pictures.plain(), content_length="-1")
    )
    yield answer(
        "length-no-number",
        "a Content-Length of words",
        _PLAIN,
        lambda _: hosts.body(pictures.plain(), content_length="many"),
    )
    yield answer(
        "length-twice",
        "two Content-Lengths that differ",
        _BROKE_OFF,
        lambda _: hosts.raw(ok + b"Content-Length: 10\r\nContent-Length: 20\r\n\r\n" + half),
    )
    yield answer(
        "chunk-garbage", "chunks whose size is no number", _BROKE_OFF, lambda _: hosts.raw(chunked + b"size\r\n" + half)
    )
    yield answer(
        "chunk-of-16-exabytes",
        "a chunk of 16 exabytes",
        refused_fetch("broke off|more than"),
        lambda _: hosts.raw(chunked + b"ffffffffffffffff\r\n" + half),
    )
    yield answer(
        "chunk-negative",
        "a chunk of -1 bytes",
        refused_fetch("broke off|more than"),
        lambda _: hosts.raw(chunked + b"-1\r\n" + half),
    )
    yield answer(
        "body-gzip-bomb",
        "200 MB, gzipped, as a content encoding",
        refused_decode("expected one of"),
        lambda _: hosts.body(gzip.compress(bytes(200 << 20)), content_encoding="gzip"),
        seconds=20,
    )
    yield answer(
        "body-gzip",
        "a picture, gzipped, as a content encoding",
        refused_decode("expected one of"),
        lambda _: hosts.body(gzip.compress(pictures.plain()), content_encoding="gzip"),
    )
    yield answer("http-0-9", "a body without a head", _BROKE_OFF, lambda _: hosts.raw(pictures.plain()))
    yield answer("http-garbage", "a megabyte without a line", _BROKE_OFF, lambda _: hosts.raw(bytes(1 << 20)))
    yield answer("http-nothing", "a closed connection", _BROKE_OFF, lambda _: hosts.raw(b""))
    yield answer(
        "status-204", "204", refused_fetch("answered 204"), lambda _: hosts.raw(b"HTTP/1.1 204 No Content\r\n\r\n")
    )
    yield answer(
        "status-206",
        "a part that nobody asked for",
        refused_fetch("answered 206"),
        lambda _: hosts.body(half, status="206 Partial Content"),
    )
    yield answer(
        "status-304",
        "304 to who has nothing",
        refused_fetch("answered 304"),
        lambda _: hosts.raw(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n'),
    )
    yield answer(
        "status-401",
        "401 in the hope of a password",
        refused_fetch("answered 401"),
        lambda _: hosts.body(b"", status="401 Unauthorized", www_authenticate="Basic realm=a"),
    )
    yield answer(
        "status-999",
        "a status that there is not",
        refused_fetch("answered 999|broke off"),
        lambda _: hosts.body(b"", status="999 Nonsense"),
    )
    yield answer(
        "status-500-with-picture",
        "a picture under 500",
        refused_fetch("answered 500"),
        lambda _: hosts.body(pictures.plain(), status="500 Error"),
    )
    yield answer(
        "etag-with-line-break",
        "an ETag that breaks the line",
        _PLAIN,
        lambda _: hosts.body(pictures.plain(), etag='"a\tb"'),
    )
    if can_make_certificates():
        yield reference(
            "tls-right-name",
            "a certificate for the name that was asked for",
            _PLAIN,
            lambda site: f"https://localhost:{site.tls.port}/a.png",
        )
        yield reference(
            "tls-wrong-name",
            "a certificate for another name",
            refused_fetch("broke off"),
            lambda site: f"https://127.0.0.1:{site.tls.port}/a.png",
        )
        yield reference(
            "tls-spoken-plainly",
            "http to a port that speaks TLS",
            _PRIVATE,
            lambda site: f"http://127.0.0.1:{site.tls.port}/a.png",
        )
    yield reference(
        "tls-to-plain-host",
        "https to a port that does not speak TLS",
        _PRIVATE,
        lambda site: f"https://127.0.0.1:{site.images.port}/a.png",
    )
    yield Case(
        "host-silent-under-64-names",
        Kind.ADDRESS,
        "3 images under each of 64 names of a host that never answers, and then good ones",
        "the good ones are scored at once",
        _many_names,
        120,
        patient=True,
    )
    yield Case(
        "host-silent-for-200-images",
        Kind.ADDRESS,
        "200 images of a host that never answers, and then a good one",
        "the good one is scored at once",
        _many_silent,
        120,
        patient=True,
    )


def _many_names(site: Site) -> Attack:
    """There are more of them than threads; who asks for another host's image must not wait for any."""
    site.crowd.otherwise = hosts.silence()
    silent = [f"http://{address}:{site.crowd.port}/{number}.png" for number in range(3) for address in CROWD]
    good = [f"{site.images.serve(f'/unhindered-{number}.png', hosts.body(pictures.plain()))}" for number in range(5)]

    def attack() -> None:
        with ThreadPoolExecutor(1) as pool:
            hanging = pool.submit(site.score, silent)
            while len(site.crowd.asked) < _PLACES:
                time.sleep(0.05)
            for reference in good:
                started = time.perf_counter()
                _PLAIN.check(site, site.score_among_good(reference))
                if (seconds := time.perf_counter() - started) > _UNHINDERED_S:
                    raise Escaped(f"a good image waited {seconds:.1f} s for those of 64 names of another host")
            for result in hanging.result():
                Refused("(fetch|expired)", "").check(site, result)

    return attack


def _many_silent(site: Site) -> Attack:
    """Half of the fetching threads hang; who asks for another host's image must not wait for them."""
    host = site.slow_host()
    silent = host.serve("/a.png", hosts.silence())

    def attack() -> None:
        with ThreadPoolExecutor(1) as pool:
            hanging = pool.submit(site.score, [f"{silent}?{number}" for number in range(200)])
            started = time.perf_counter()
            while not host.asked:
                time.sleep(0.05)
            _PLAIN.check(site, site.score_among_good("/data/local-files/?d=sub/good.png"))
            if (seconds := time.perf_counter() - started) > _UNHINDERED_S:
                raise Escaped(f"a good image waited {seconds:.1f} s for those of the other host")
            for result in hanging.result():
                Refused("(fetch|expired)", "").check(site, result)

    return attack


def _tokens() -> Iterator[Case]:
    """What would like to be given Label Studio's token; that it is not, is looked at after every case."""
    for name, template in {
        "name-begins-alike": "http://127.0.0.1.evil.test:{port}/data/upload/1/a.png",
        "name-ends-alike": "http://evil127.0.0.1:{port}/data/upload/1/a.png",
        "as-user": "http://127.0.0.1:{port}@evil.test/data/upload/1/a.png",
        "private-host": "http://10.0.0.1:{port}/data/upload/1/a.png",
        "two-slashes": "//evil.test/data/upload/1/a.png",
        "local-files-elsewhere": "http://evil.test/data/local-files/?d=sub/good.png",
    }.items():
        yield reference(f"token-{name}", template, _UNKNOWN, partial(_at_studio, template))
    for name, template in {
        "other-name": "http://localhost:{port}/data/upload/1/a.png",
        "other-port": "http://localhost:{canary}/data/upload/1/a.png",
        "other-scheme": "https://127.0.0.1:{port}/data/upload/1/a.png",
        "prefix": "http://[::1]:{canary}/prefix/data/upload/1/a.png",
    }.items():  # Label Studio by the name that browsers on its own machine know: asked at its address, and nowhere else
        yield reference(f"token-{name}", template, refused_fetch("answered 403"), partial(_at_studio, template))
    yield reference(
        "token-to-allowed-origin",
        "a path of Label Studio's at another allowed origin",
        _PLAIN,
        lambda site: site.images.serve("/data/upload/1/a.png", hosts.body(pictures.plain())),
    )
    yield reference("token-through-redirect", "Label Studio leads to another allowed origin", _PLAIN, _leads_away)
    yield reference(
        "token-there-and-back",
        "an allowed origin leads to Label Studio's API",
        refused_fetch("answered 403"),
        _leads_to_api,
    )
    for name, path in {
        "api": "/api/projects/",
        "api-climbing": "/data/upload/../../api/projects/",
        "api-climbing-escaped": "/data/upload/%2e%2e/%2e%2e/api/projects/",
        "api-climbing-backslash": "/data/upload/..%5c..%5capi/projects/",
        "api-climbing-twice-escaped": "/data/upload/%252e%252e/api/projects/",
    }.items():
        yield reference(f"token-{name}-url", path, refused_fetch("answered 403"), partial(_api_url, path))
    for name, path in {
        "api": "/api/projects/",
        "logout": "/user/logout",
        "climbing": "/data/../api/projects/",
    }.items():
        yield reference(f"path-{name}", path, _NO_IMAGE_PATH, partial(_always, path))
    yield reference(
        "upload-climbing",
        "/data/upload/../../api/projects/",
        refused_fetch("answered 403|path on which"),
        partial(_always, "/data/upload/../../api/projects/"),
    )
    for name, key in {
        "climbing": "../../api/projects/",
        "line-break": "a\r\nX: 1",
        "of-percent": "%2e%2e/%00",
        "query": "a.png?x=1#y",
        "empty": "",
        "quotes": "'\"><script>",
    }.items():
        yield reference(f"s3-key-{name}", f"s3://bucket/{key!r}", _PLAIN, partial(_resolved, f"s3://bucket/{key}"))
    yield reference(
        "s3-key-of-9-kb", "a key of 9 kB", refused_fetch("at most 8192"), lambda _: "s3://bucket/" + "a" * 9_000
    )


def _leads_away(site: Site) -> str:
    site.studio.serve(
        "/data/upload/1/away.png", hosts.redirect(site.images.serve("/away.png", hosts.body(pictures.plain())))
    )
    return "/data/upload/1/away.png"


def _leads_to_api(site: Site) -> str:
    return site.images.serve("/back", hosts.redirect(f"{site.studio.url}/api/projects/"))


def _api_url(path: str, site: Site) -> str:
    return site.studio.url + path


def _resolved(key: str, site: Site) -> str:
    site.studio.serve("/tasks/2/resolve/", hosts.body(pictures.plain()))
    return key


def _local_files() -> Iterator[Case]:
    yield reference("local-good", "a file below the folder", _PLAIN, lambda _: "/data/local-files/?d=sub/good.png")
    for name, path in {
        "climbing": "../secret.png",
        "climbing-escaped": "%2e%2e/secret.png",
        "climbing-twice-escaped": "%252e%252e/secret.png",
        "climbing-from-below": "sub/../../secret.png",
        "climbing-backslash": "..%5csecret.png",
        "absolute": "/etc/passwd",
        "absolute-two-slashes": "//etc/passwd",
        "home": "~/.ssh/id_rsa",
        "proc": "/proc/self/environ",
        "nul": "sub/good.png%00.txt",
        "link": "link.png",
        "link-to-folder": "out/secret.png",
        "link-to-itself": "loop",
        "link-to-device": "zero",
        "device": "/dev/zero",
        "pipe": "pipe",
        "socket": "socket",
        "folder": "sub",
        "folder-itself": ".",
        "nothing": "",
        "long-name": "a" * 5_000,
        "surrogate": "%ed%a0%80",
    }.items():
        yield reference(
            f"local-{name}",
            f"/data/local-files/?d={path[:40]}",
            _NOT_BELOW,
            partial(_always, f"/data/local-files/?d={path}"),
        )
    yield reference("local-100-gb", "a sparse file of 100 GB", _TOO_LARGE, lambda _: "/data/local-files/?d=sparse.png")
    yield reference(
        "local-twice",
        "two names of which the first counts",
        _PLAIN,
        lambda _: "/data/local-files/?d=sub/good.png&d=../secret.png",
    )


def _no_addresses() -> Iterator[Case]:
    plain = base64.b64encode(pictures.plain()).decode()
    for name, uri in {
        "without-type": f"data:;base64,{plain}",
        "of-html": f"data:text/html;base64,{plain}",
        "in-capitals": f" DATA:image/png;BASE64,{plain}",
        "line-breaks": "data:image/png;base64," + "\r\n".join(wrap(plain, 76)),
        "unpadded": f"data:image/png;base64,{plain.rstrip('=')}",
        "escaped": f"data:image/png;base64,{urllib.parse.quote(plain, safe='')}",
        "percent": f"data:image/png,{urllib.parse.quote(pictures.plain())}",
    }.items():
        yield reference(f"data-{name}", f"{uri[:24]}...", _PLAIN, partial(_always, uri))
    for name, uri, outcome in (
        ("nothing", "data:", refused_fetch("holds no data")),
        ("no-comma", "data:image/png;base64", refused_fetch("holds no data")),
        ("bad-base64", "data:image/png;base64,!!!!", refused_fetch("not valid base64")),
        ("svg", data_uri(b"<svg/>", "image/svg+xml"), refused_decode("expected one of")),
        ("url-safe-base64", "data:image/png;base64,-_-_", refused_fetch("not valid base64")),
        ("non-ascii", "data:image/png;base64,\u00e4\u00f6", refused_fetch("not valid base64|cannot")),
    ):
        yield reference(f"data-{name}", uri[:30], outcome, partial(_always, uri))
    yield reference(
        "data-of-21-mb",
        "a picture and 21 MB behind it",
        refused_fetch("more than 20971520"),
        lambda _: data_uri(pictures.plain().ljust(21 << 20, b"\0")),
    )
    yield reference(
        "data-of-10-million-escapes",
        "10 million characters escaped by %",
        refused_fetch("use base64"),
        lambda _: "data:image/png," + "%41" * 10_000_000,
    )
    for text in (
        "javascript:alert(1)",
        "file:///etc/passwd",
        "ftp://127.0.0.1/a.png",
        "gopher://127.0.0.1/",
        "unix:///run/docker.sock",
        "http+unix://%2Frun%2Fdocker.sock/",
        "/etc/passwd",
        "a.png",
        "../a.png",
        "azure-blob:/a",
        "chrome://settings",
        "view-source:http://127.0.0.1/",
    ):
        yield reference(
            f"reference-{text[:14].strip('/').replace('..', 'above')}",
            text,
            refused_fetch("import the task again"),
            partial(_always, text),
        )
    numbers = count(1)
    for value in (None, True, 7, 1.5, [], ["http://127.0.0.1/"], {}, {"url": "http://127.0.0.1/"}, ""):
        yield reference(
            f"reference-no-text-{next(numbers)}",
            repr(value),
            Refused("no_image", "expected an image's address"),
            partial(_always, value),
        )
    yield reference("reference-nul", "NUL bytes", refused_fetch("import the task again"), lambda _: "\0\0\0")
    yield reference("reference-surrogate", "half of a surrogate pair", _UNKNOWN, lambda _: "http://\ud800.test/a.png")
    yield reference(
        "reference-surrogate-in-path",
        "half of a surrogate pair in a path",
        refused_fetch(""),
        lambda site: f"{site.images.url}/\ud800.png",
    )
    yield reference(
        "reference-forges-log",
        "a line of a log",
        refused_fetch("import the task again"),
        lambda _: 'x\n{"forged": true}\n',
    )
