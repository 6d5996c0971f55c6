"""Hostile image references in tasks: forbidden hosts, path traversal, ambiguous URLs and malformed references."""

import base64
import json
import urllib.parse
from collections.abc import Callable
from textwrap import wrap

from bench.hostile import pictures
from bench.hostile.case import PLAIN, Case, Kind, Outcome, Refused, printable, refused_decode, refused_fetch
from bench.hostile.site import Site, data_uri

PRIVATE = refused_fetch("has an address that is not public")
TOO_LARGE = refused_fetch("more than 20971520 bytes")
_NOT_ALLOWED = refused_fetch("import the task again|not a URL|has an address that is not public|cannot be reached")
_NO_REFERENCE = refused_fetch("import the task again")
_NOT_BELOW = refused_fetch("the local file .* (is not a file below|cannot be read)")
_NO_IMAGE_PATH = refused_fetch("a path on which Label Studio serves images")
_TOO_LONG = refused_fetch("at most 8192")
_FORBIDDEN = refused_fetch("answered 403")
_GONE = refused_fetch("answered 404")
_NOT_BASE64 = refused_fetch("not valid base64")

LOOPBACK = (
    *("127.0.0.1", "127.0.0.2", "0x7f000001", "0x7f.0.0.0x1", "2130706433", "127.1", "0177.0.0.1", "0"),
    *("0.0.0.0", "localhost", "LOCALHOST", "localhost."),  # noqa: S104  # requested, not bound
    *("[::1]", "[0:0:0:0:0:0:0:1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
)
NON_PUBLIC = (
    *("10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.7.7", "[fe80::1]", "[fec0::1]", "[fc00::1]"),
    # Metadata services of clouds: AWS and others, Azure, Alibaba, Oracle.
    *("169.254.169.254", "2852039166", "[fd00:ec2::254]", "[::ffff:169.254.169.254]"),
    *("168.63.129.16", "100.100.100.200", "192.0.0.192"),
    # Carrier-grade NAT, benchmarks, documentation, multicast, reserved, broadcast.
    *("100.64.0.1", "198.18.0.1", "192.0.2.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("[ff02::1]", "[2001:db8::1]", "[4000::1]"),
    # IPv4 within IPv6: mapped, translated, NAT64, 6to4, Teredo, ISATAP.
    *("[::ffff:10.0.0.1]", "[::ffff:100.64.0.1]", "[::ffff:224.0.0.1]", "[::ffff:0:10.0.0.1]"),
    *("[64:ff9b::10.0.0.1]", "[64:ff9b:1::10.0.0.1]", "[2002:a00:1::1]", "[2001:0:a00:1::]"),
    "[2606:2800:220:1:0:5efe:10.0.0.1]",
)
_AMBIGUOUS = (
    # The allowed origin as user, fragment or query.
    *("http://{allowed}@{canary}/a.png", "http://{allowed}:80@{canary}/a.png", "http://a@{allowed}@{canary}/a.png"),
    *("http://{canary}#@{allowed}/a.png", "http://{canary}?@{allowed}/a.png"),
    # Slashes, spaces, and characters that some parsers drop.
    *("\\\\{canary}\\a.png", "http:\\\\{canary}\\a.png", "http:///{canary}/a.png", "http:/{canary}/a.png"),
    *("http:{canary}/a.png", "HTTP://{canary}/a.png", " http://{canary}/a.png", "\nhttp://{canary}/a.png"),
    *("http://127.0.\t0.1:{port}/a.png", "http://127.0.\n0.1:{port}/a.png", "http://{canary}../a.png", "http://"),
    # Truncated or escaped hosts.
    *("http://127.0.0.1\0.evil.test:{port}/a.png", "http://127.0.0.1%00.evil.test:{port}/a.png"),
    *("http://127.0.0.1 .evil.test:{port}/a.png", "http://%31%32%37.0.0.1:{port}/a.png"),
    # Characters that IDNA maps to others: full-width and circled digits, ideographic full stops, a soft hyphen.
    *("http://\uff11\uff12\uff17.0.0.1:{port}/a.png", "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460:{port}/a.png"),
    *("http://127\u30020\u30020\u30021:{port}/a.png", "http://local\u00adhost:{port}/a.png"),
    # Ports, zones, brackets, and an HTTP header in the path.
    *("http://127.0.0.1:65537/a.png", "http://127.0.0.1:-1/a.png", "http://127.0.0.1:/a.png"),
    *("http://127.0.0.1:\u0661\u0662/a.png", "http://[fe80::1%25lo]:{port}/a.png", "http://[::1:{port}/a.png"),
    "http://{canary}/a.png HTTP/1.1\r\nX-Injected: 1\r\n",
)
"""URLs that have an allowed origin for some parsers, and another host for others."""

_TOKEN_FOREIGN_HOST = {
    "host-with-same-prefix": "http://127.0.0.1.evil.test:{studio}/data/upload/1/a.png",
    "host-with-same-suffix": "http://evil127.0.0.1:{studio}/data/upload/1/a.png",
    "host-as-user": "http://127.0.0.1:{studio}@evil.test/data/upload/1/a.png",
    "private-host": "http://10.0.0.1:{studio}/data/upload/1/a.png",
    "url-without-scheme": "//evil.test/data/upload/1/a.png",
    "local-files-of-foreign-host": "http://evil.test/data/local-files/?d=sub/good.png",
}
_TOKEN_LABEL_STUDIO = {
    "other-hostname": "http://localhost:{studio}/data/upload/1/a.png",
    "other-port": "http://localhost:{port}/data/upload/1/a.png",
    "other-scheme": "https://127.0.0.1:{studio}/data/upload/1/a.png",
    "path-prefix": "http://[::1]:{port}/prefix/data/upload/1/a.png",
    "api": "http://127.0.0.1:{studio}/api/projects/",
    "api-traversal": "http://127.0.0.1:{studio}/data/upload/../../api/projects/",
    "api-traversal-escaped": "http://127.0.0.1:{studio}/data/upload/%2e%2e/%2e%2e/api/projects/",
    "api-traversal-backslash": "http://127.0.0.1:{studio}/data/upload/..%5c..%5capi/projects/",
    "api-traversal-twice-escaped": "http://127.0.0.1:{studio}/data/upload/%252e%252e/api/projects/",
}
"""URLs of Label Studio, by its address or a loopback name, which may be requested only from Label Studio."""

_S3_KEYS = ("../../api/projects/", "a\r\nX: 1", "%2e%2e/%00", "a.png?x=1#y", "", "'\"><script>")
LOCAL_FILES = (
    *("../secret.png", "%2e%2e/secret.png", "%252e%252e/secret.png", "sub/../../secret.png", "..%5csecret.png"),
    *("/etc/passwd", "//etc/passwd", "~/.ssh/id_rsa", "/proc/self/environ", "sub/good.png%00.txt"),
    # Links to other folders, to themselves and to a device; a device, a pipe and a socket; folders; odd names.
    *("link.png", "out/secret.png", "loop", "zero", "/dev/zero", "pipe", "socket", "sub", "."),
    *("", "a" * 5_000, "%ed%a0%80"),
)
_UNSUPPORTED = (
    *(
        "javascript:alert(1)",
        "file:///etc/passwd",
        "http+unix://%2Frun%2Fdocker.sock/",
        "view-source:http://127.0.0.1/",
    ),
    *("azure-blob:/a", "/etc/passwd", "a.png", "../a.png"),
)
_NOT_URLS: tuple[object, ...] = (
    *(None, True, 7, 1.5, [], ["http://127.0.0.1/", ""], {}, {"url": "http://127.0.0.1/"}, ""),
)


def reference_case(
    name: str, outcome: Outcome, content: object | Callable[[Site], object], *, seconds: float = 10
) -> Case:
    """Return a case of an image reference between two good ones.

    `content` is a JSON value, a template for `Site.fill`, or a function that makes one of these.
    """

    def make(site: Site) -> object:
        made = content(site) if callable(content) else content
        return site.fill(made) if isinstance(made, str) else made

    return Case(name, Kind.ADDRESS, lambda site, made: outcome.check(site, site.score_among_good(made)), make, seconds)


def cases() -> list[Case]:
    """Return the cases of this module."""
    return [*_urls(), *_paths(), *_malformed(), *_data_uris()]


def _urls() -> list[Case]:
    """URLs; `Site.unharmed` checks where Label Studio's token was sent."""
    return [
        *(
            reference_case(
                f"loopback-{host}", PRIVATE if host[-1] != "." else _NOT_ALLOWED, f"http://{host}:{{port}}/a.png"
            )
            for host in LOOPBACK
        ),
        *(reference_case(f"non-public-{host}", PRIVATE, f"http://{host}/a.png") for host in NON_PUBLIC),
        *(reference_case(f"ambiguous-{printable(url, 60)}", _NOT_ALLOWED, url) for url in _AMBIGUOUS),
        reference_case("ambiguous-backslash-before-at", _GONE, "http://{allowed}\\@{canary}/a.png"),
        *(reference_case(f"token-{name}", _NOT_ALLOWED, url) for name, url in _TOKEN_FOREIGN_HOST.items()),
        *(reference_case(f"token-{name}", _FORBIDDEN, url) for name, url in _TOKEN_LABEL_STUDIO.items()),
        reference_case("url-of-64-kb", _TOO_LONG, "http://{allowed}/" + "a" * 65_536),
        reference_case("url-of-20-mb", _TOO_LONG, lambda _: "http://" + "a" * 20_000_000),
        reference_case("url-of-20-million-at-signs", _TOO_LONG, lambda _: "http://" + "@" * 20_000_000),
        reference_case("url-with-secret-query", _GONE, "http://{allowed}/a?signature={signature}"),
    ]


def _paths() -> list[Case]:
    """Label Studio's own paths, keys of its storages, and local files."""
    local = "/data/local-files/?d="
    return [
        reference_case("path-api", _NO_IMAGE_PATH, "/api/projects/"),
        reference_case("path-logout", _NO_IMAGE_PATH, "/user/logout"),
        reference_case("path-traversal", _NO_IMAGE_PATH, "/data/../api/projects/"),
        reference_case(
            "upload-traversal", refused_fetch("answered 403|path on which"), "/data/upload/../../api/projects/"
        ),
        *(reference_case(f"s3-key-{printable(key)}", PLAIN, f"s3://bucket/{key}") for key in _S3_KEYS),
        reference_case("s3-key-of-9-kb", _TOO_LONG, "s3://bucket/" + "a" * 9_000),
        reference_case("local-file-valid", PLAIN, f"{local}sub/good.png"),
        *(reference_case(f"local-file-{printable(path)}", _NOT_BELOW, local + path) for path in LOCAL_FILES),
        reference_case("local-file-of-100-gb", TOO_LARGE, f"{local}sparse.png"),
        reference_case("local-file-given-twice", PLAIN, f"{local}sub/good.png&d=../secret.png"),  # the first counts
    ]


def _malformed() -> list[Case]:
    no_image = Refused("no_image", "expected an image's address")
    return [
        *(reference_case(f"reference-{text}", _NO_REFERENCE, text) for text in _UNSUPPORTED),
        *(reference_case(f"reference={json.dumps(value)}", no_image, value) for value in _NOT_URLS),
        reference_case("reference-nul", _NO_REFERENCE, "\0\0\0"),
        reference_case("reference-surrogate", _NOT_ALLOWED, "http://\ud800.test/a.png"),
        reference_case("reference-surrogate-in-path", refused_fetch(""), "http://{allowed}/\ud800.png"),
        reference_case("reference-with-forged-log-line", _NO_REFERENCE, 'x\n{"forged": true}\n'),
    ]


def _data_uris() -> list[Case]:
    plain = base64.b64encode(pictures.plain()).decode()
    good = {
        "without-type": f"data:;base64,{plain}",
        "of-html": f"data:text/html;base64,{plain}",
        "in-capitals": f" DATA:image/png;BASE64,{plain}",
        "line-breaks": "data:image/png;base64," + "\r\n".join(wrap(plain, 76)),
        "unpadded": f"data:image/png;base64,{plain.rstrip('=')}",
        "escaped-base64": f"data:image/png;base64,{urllib.parse.quote(plain, safe='')}",
        "percent-encoded": f"data:image/png,{urllib.parse.quote(pictures.plain())}",
    }
    return [
        *(reference_case(f"data-uri-{name}", PLAIN, uri) for name, uri in good.items()),
        reference_case("data-uri-empty", refused_fetch("contains no data"), "data:"),
        reference_case("data-uri-without-comma", refused_fetch("contains no data"), "data:image/png;base64"),
        reference_case("data-uri-bad-base64", _NOT_BASE64, "data:image/png;base64,!!!!"),
        reference_case("data-uri-svg", refused_decode("expected one of"), data_uri(b"<svg/>", "image/svg+xml")),
        reference_case("data-uri-url-safe-base64", _NOT_BASE64, "data:image/png;base64,-_-_"),
        reference_case(
            "data-uri-non-ascii", refused_fetch("not valid base64|cannot"), "data:image/png;base64,\u00e4\u00f6"
        ),
        reference_case("data-uri-of-21-mb", TOO_LARGE, lambda _: data_uri(pictures.plain().ljust(21 << 20, b"\0"))),
        reference_case(
            "data-uri-of-10-million-escapes", refused_fetch("use base64"), lambda _: "data:image/png," + "%41" * 10**7
        ),
    ]
