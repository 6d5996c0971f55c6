"""References in tasks: addresses that must not be asked, paths that lead astray, and what is no reference."""

import base64
import urllib.parse
from collections.abc import Callable
from textwrap import wrap

from bench.hostile import pictures
from bench.hostile.case import PLAIN, Case, Kind, Outcome, Refused, refused_decode, refused_fetch
from bench.hostile.site import Site, data_uri

PRIVATE = refused_fetch("is not on the public internet")
TOO_LARGE = refused_fetch("more than 20971520 bytes")
_UNKNOWN = refused_fetch("import the task again|not a URL|is not on the public internet|cannot be reached")
_NO_REFERENCE = refused_fetch("import the task again")
_NOT_BELOW = refused_fetch("the local file .* (is not a file below|cannot be read)")
_NO_IMAGE_PATH = refused_fetch("a path on which Label Studio serves images")
_TOO_LONG = refused_fetch("at most 8192")
_FORBIDDEN = refused_fetch("answered 403")
_GONE = refused_fetch("answered 404")
_NOT_BASE64 = refused_fetch("not valid base64")

THIS_MACHINE = (
    *("127.0.0.1", "127.0.0.2", "0x7f000001", "0x7f.0.0.0x1", "2130706433", "127.1", "0177.0.0.1", "0"),
    *("0.0.0.0", "localhost", "LOCALHOST", "localhost."),  # noqa: S104  # what is asked for, not listened on
    *("[::1]", "[0:0:0:0:0:0:0:1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
)
ELSEWHERE = (
    *("10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.7.7", "[fe80::1]", "[fec0::1]", "[fc00::1]"),
    # What clouds tell their machines: AWS and others, Azure, Alibaba, Oracle.
    *("169.254.169.254", "2852039166", "[fd00:ec2::254]", "[::ffff:169.254.169.254]"),
    *("168.63.129.16", "100.100.100.200", "192.0.0.192"),
    # Shared by a provider's customers, for benchmarks and documentation, multicast, reserved, broadcast.
    *("100.64.0.1", "198.18.0.1", "192.0.2.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("[ff02::1]", "[2001:db8::1]", "[4000::1]"),
    # IPv4 within IPv6: mapped, translated, NAT64, 6to4, Teredo, ISATAP.
    *("[::ffff:10.0.0.1]", "[::ffff:100.64.0.1]", "[::ffff:224.0.0.1]", "[::ffff:0:10.0.0.1]"),
    *("[64:ff9b::10.0.0.1]", "[64:ff9b:1::10.0.0.1]", "[2002:a00:1::1]", "[2001:0:a00:1::]"),
    "[2606:2800:220:1:0:5efe:10.0.0.1]",
)
_SPELLINGS = (
    # The allowed origin as user, fragment or query.
    *("http://{allowed}@{canary}/a.png", "http://{allowed}:80@{canary}/a.png", "http://a@{allowed}@{canary}/a.png"),
    *("http://{canary}#@{allowed}/a.png", "http://{canary}?@{allowed}/a.png"),
    # Slashes, spaces and what else is left out by some.
    *("\\\\{canary}\\a.png", "http:\\\\{canary}\\a.png", "http:///{canary}/a.png", "http:/{canary}/a.png"),
    *("http:{canary}/a.png", "HTTP://{canary}/a.png", " http://{canary}/a.png", "\nhttp://{canary}/a.png"),
    *("http://127.0.\t0.1:{port}/a.png", "http://127.0.\n0.1:{port}/a.png", "http://{canary}../a.png", "http://"),
    # Hosts that end early, or are escaped.
    *("http://127.0.0.1\0.evil.test:{port}/a.png", "http://127.0.0.1%00.evil.test:{port}/a.png"),
    *("http://127.0.0.1 .evil.test:{port}/a.png", "http://%31%32%37.0.0.1:{port}/a.png"),
    # Full-width and circled digits, ideographic full stops, a soft hyphen: IDNA takes them for others.
    *("http://\uff11\uff12\uff17.0.0.1:{port}/a.png", "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460:{port}/a.png"),
    *("http://127\u30020\u30020\u30021:{port}/a.png", "http://local\u00adhost:{port}/a.png"),
    # Ports, zones, brackets, and a line of HTTP in the path.
    *("http://127.0.0.1:65537/a.png", "http://127.0.0.1:-1/a.png", "http://127.0.0.1:/a.png"),
    *("http://127.0.0.1:\u0661\u0662/a.png", "http://[fe80::1%25lo]:{port}/a.png", "http://[::1:{port}/a.png"),
    "http://{canary}/a.png HTTP/1.1\r\nX-Injected: 1\r\n",
)
"""Addresses that one parser may take for an allowed origin and another for something else."""

_TOKEN_ELSEWHERE = {
    "name-begins-alike": "http://127.0.0.1.evil.test:{studio}/data/upload/1/a.png",
    "name-ends-alike": "http://evil127.0.0.1:{studio}/data/upload/1/a.png",
    "as-user": "http://127.0.0.1:{studio}@evil.test/data/upload/1/a.png",
    "private-host": "http://10.0.0.1:{studio}/data/upload/1/a.png",
    "two-slashes": "//evil.test/data/upload/1/a.png",
    "local-files-elsewhere": "http://evil.test/data/local-files/?d=sub/good.png",
}
_TOKEN_AT_HOME = {
    "other-name": "http://localhost:{studio}/data/upload/1/a.png",
    "other-port": "http://localhost:{port}/data/upload/1/a.png",
    "other-scheme": "https://127.0.0.1:{studio}/data/upload/1/a.png",
    "prefix": "http://[::1]:{port}/prefix/data/upload/1/a.png",
    "api-url": "http://127.0.0.1:{studio}/api/projects/",
    "api-climbing-url": "http://127.0.0.1:{studio}/data/upload/../../api/projects/",
    "api-climbing-escaped-url": "http://127.0.0.1:{studio}/data/upload/%2e%2e/%2e%2e/api/projects/",
    "api-climbing-backslash-url": "http://127.0.0.1:{studio}/data/upload/..%5c..%5capi/projects/",
    "api-climbing-twice-escaped-url": "http://127.0.0.1:{studio}/data/upload/%252e%252e/api/projects/",
}
"""Label Studio by its address, or the name that browsers on its own machine know: asked there, and nowhere else."""

_S3_KEYS = ("../../api/projects/", "a\r\nX: 1", "%2e%2e/%00", "a.png?x=1#y", "", "'\"><script>")
LOCAL_FILES = (
    *("../secret.png", "%2e%2e/secret.png", "%252e%252e/secret.png", "sub/../../secret.png", "..%5csecret.png"),
    *("/etc/passwd", "//etc/passwd", "~/.ssh/id_rsa", "/proc/self/environ", "sub/good.png%00.txt"),
    # Links out of the folder, to themselves and to a device; a device, a pipe and a socket; folders; odd names.
    *("link.png", "out/secret.png", "loop", "zero", "/dev/zero", "pipe", "socket", "sub", "."),
    *("", "a" * 5_000, "%ed%a0%80"),
)
_NO_REFERENCES = (
    *(
        "javascript:alert(1)",
        "file:///etc/passwd",
        "http+unix://%2Frun%2Fdocker.sock/",
        "view-source:http://127.0.0.1/",
    ),
    *("azure-blob:/a", "/etc/passwd", "a.png", "../a.png"),
)
_NO_TEXTS: tuple[object, ...] = (
    *(None, True, 7, 1.5, [], ["http://127.0.0.1/", ""], {}, {"url": "http://127.0.0.1/"}, ""),
)


def reference(name: str, outcome: Outcome, what: object | Callable[[Site], object], *, seconds: float = 10) -> Case:
    """A reference in a task between two good ones: a text, in which a site's places are filled in, or what makes it."""

    def make(site: Site) -> object:
        made = what(site) if callable(what) else what
        return site.fill(made) if isinstance(made, str) else made

    return Case(name, Kind.ADDRESS, lambda site, made: outcome.check(site, site.score_among_good(made)), make, seconds)


def cases() -> list[Case]:
    """Every reference."""
    return [*_addresses(), *_paths(), *_no_addresses(), *_data_uris()]


def _addresses() -> list[Case]:
    """Who has Label Studio's token is looked at with what else is harm."""
    return [
        *(
            reference(f"this-machine-{host}", PRIVATE if host[-1] != "." else _UNKNOWN, f"http://{host}:{{port}}/a.png")
            for host in THIS_MACHINE
        ),
        *(reference(f"private-{host}", PRIVATE, f"http://{host}/a.png") for host in ELSEWHERE),
        *(reference(f"spelling-{template}", _UNKNOWN, template) for template in _SPELLINGS),
        reference("spelling-backslash-before-at", _GONE, "http://{allowed}\\@{canary}/a.png"),
        *(reference(f"token-{name}", _UNKNOWN, template) for name, template in _TOKEN_ELSEWHERE.items()),
        *(reference(f"token-{name}", _FORBIDDEN, template) for name, template in _TOKEN_AT_HOME.items()),
        reference("address-of-64-kb", _TOO_LONG, "http://{allowed}/" + "a" * 65_536),
        reference("address-of-20-mb", _TOO_LONG, lambda _: "http://" + "a" * 20_000_000),
        reference("address-of-20-mb-of-ats", _TOO_LONG, lambda _: "http://" + "@" * 20_000_000),
        reference("address-with-secret-query", _GONE, "http://{allowed}/a?signature={signature}"),
    ]


def _paths() -> list[Case]:
    """Label Studio's own paths, keys of its storages, and local files."""
    local = "/data/local-files/?d="
    return [
        reference("path-api", _NO_IMAGE_PATH, "/api/projects/"),
        reference("path-logout", _NO_IMAGE_PATH, "/user/logout"),
        reference("path-climbing", _NO_IMAGE_PATH, "/data/../api/projects/"),
        reference("upload-climbing", refused_fetch("answered 403|path on which"), "/data/upload/../../api/projects/"),
        *(reference(f"s3-key-{key}", PLAIN, f"s3://bucket/{key}") for key in _S3_KEYS),
        reference("s3-key-of-9-kb", _TOO_LONG, "s3://bucket/" + "a" * 9_000),
        reference("local-good", PLAIN, f"{local}sub/good.png"),
        *(reference(f"local-{path[:30]}", _NOT_BELOW, local + path) for path in LOCAL_FILES),
        reference("local-100-gb", TOO_LARGE, f"{local}sparse.png"),
        reference("local-twice", PLAIN, f"{local}sub/good.png&d=../secret.png"),  # the first counts
    ]


def _no_addresses() -> list[Case]:
    no_image = Refused("no_image", "expected an image's address")
    return [
        *(reference(f"reference-{text}", _NO_REFERENCE, text) for text in _NO_REFERENCES),
        *(reference(f"reference-no-text-{n}", no_image, value) for n, value in enumerate(_NO_TEXTS, start=1)),
        reference("reference-nul", _NO_REFERENCE, "\0\0\0"),
        reference("reference-surrogate", _UNKNOWN, "http://\ud800.test/a.png"),
        reference("reference-surrogate-in-path", refused_fetch(""), "http://{allowed}/\ud800.png"),
        reference("reference-forges-log", _NO_REFERENCE, 'x\n{"forged": true}\n'),
    ]


def _data_uris() -> list[Case]:
    plain = base64.b64encode(pictures.plain()).decode()
    good = {
        "without-type": f"data:;base64,{plain}",
        "of-html": f"data:text/html;base64,{plain}",
        "in-capitals": f" DATA:image/png;BASE64,{plain}",
        "line-breaks": "data:image/png;base64," + "\r\n".join(wrap(plain, 76)),
        "unpadded": f"data:image/png;base64,{plain.rstrip('=')}",
        "escaped": f"data:image/png;base64,{urllib.parse.quote(plain, safe='')}",
        "percent": f"data:image/png,{urllib.parse.quote(pictures.plain())}",
    }
    return [
        *(reference(f"data-{name}", PLAIN, uri) for name, uri in good.items()),
        reference("data-nothing", refused_fetch("holds no data"), "data:"),
        reference("data-no-comma", refused_fetch("holds no data"), "data:image/png;base64"),
        reference("data-bad-base64", _NOT_BASE64, "data:image/png;base64,!!!!"),
        reference("data-svg", refused_decode("expected one of"), data_uri(b"<svg/>", "image/svg+xml")),
        reference("data-url-safe-base64", _NOT_BASE64, "data:image/png;base64,-_-_"),
        reference("data-non-ascii", refused_fetch("not valid base64|cannot"), "data:image/png;base64,\u00e4\u00f6"),
        reference("data-of-21-mb", TOO_LARGE, lambda _: data_uri(pictures.plain().ljust(21 << 20, b"\0"))),
        reference(
            "data-of-10-million-escapes", refused_fetch("use base64"), lambda _: "data:image/png," + "%41" * 10**7
        ),
    ]
