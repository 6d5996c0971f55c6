"""References in tasks: addresses that must not be asked, hosts that misbehave, and paths that lead astray."""

import base64
import urllib.parse
from collections.abc import Callable
from functools import partial
from textwrap import wrap

from bench.harness import hosts
from bench.harness.hosts import Answer
from bench.hostile import pictures
from bench.hostile.case import PLAIN, Case, Kind, Outcome, Refused, refused_decode, refused_fetch
from bench.hostile.site import Site, data_uri

PRIVATE = refused_fetch("is not on the public internet")
_UNKNOWN = refused_fetch("import the task again|not a URL|is not on the public internet|cannot be reached")
_NO_REFERENCE = refused_fetch("import the task again")
_NOT_BELOW = refused_fetch("the local file .* (is not a file below|cannot be read)")
_NO_IMAGE_PATH = refused_fetch("a path on which Label Studio serves images")
TOO_LARGE = refused_fetch("more than 20971520 bytes")
_TOO_LONG = refused_fetch("at most 8192")
_FORBIDDEN = refused_fetch("answered 403")
_GONE = refused_fetch("answered 404")
_NOT_BASE64 = refused_fetch("not valid base64")
_OTHER_FORMAT = refused_decode("expected one of")

THIS_MACHINE = {
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
ELSEWHERE = {
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
    "ipv6-mapped-shared": "[::ffff:100.64.0.1]",
    "ipv6-mapped-multicast": "[::ffff:224.0.0.1]",
    "ipv6-of-nobody": "[4000::1]",
    "ipv6-translated": "[::ffff:0:10.0.0.1]",
    "nat64": "[64:ff9b::10.0.0.1]",
    "nat64-local": "[64:ff9b:1::10.0.0.1]",
    "6to4": "[2002:a00:1::1]",
    "teredo": "[2001:0:a00:1::]",
    "isatap": "[2606:2800:220:1:0:5efe:10.0.0.1]",
}
_SPELLINGS = {
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
}
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

_S3_KEYS = {
    "climbing": "../../api/projects/",
    "line-break": "a\r\nX: 1",
    "of-percent": "%2e%2e/%00",
    "query": "a.png?x=1#y",
    "empty": "",
    "quotes": "'\"><script>",
}
LOCAL_FILES = {
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
}
_NO_REFERENCES = (
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
)
_NO_TEXTS: tuple[object, ...] = (
    *(None, True, 7, 1.5, [], ["http://127.0.0.1/", ""]),
    *({}, {"url": "http://127.0.0.1/"}, ""),
)


def made(name: str, outcome: Outcome, make: Callable[[Site], object], *, seconds: float = 10) -> Case:
    """A reference in a task between two good ones."""
    return Case(name, Kind.ADDRESS, lambda site, made: outcome.check(site, site.score_among_good(made)), make, seconds)


def given(name: str, outcome: Outcome, reference: object) -> Case:
    """A reference as it stands; a text may name ports and the allowed origin in braces."""
    return made(name, outcome, lambda site: fill(reference, site) if isinstance(reference, str) else reference)


def cases() -> list[Case]:
    """Every reference."""
    return [*_addresses(), *_tokens(), *_paths(), *_no_addresses()]


def fill(template: str, site: Site) -> str:
    """Put ports and origins of a site into a reference."""
    places = {
        "{allowed}": f"127.0.0.1:{site.images.port}",
        "{canary}": f"127.0.0.1:{site.canary.port}",
        "{port}": str(site.canary.port),
        "{studio}": str(site.studio.port),
        "{tls}": str(site.tls.port),
    }
    for place, value in places.items():
        template = template.replace(place, value)
    return template


def _addresses() -> list[Case]:
    return [
        *(
            given(f"this-machine-{name}", PRIVATE if host[-1] != "." else _UNKNOWN, f"http://{host}:{{port}}/a.png")
            for name, host in THIS_MACHINE.items()
        ),
        *(given(f"private-{name}", PRIVATE, f"http://{host}/a.png") for name, host in ELSEWHERE.items()),
        *(
            given(f"spelling-{name}", _GONE if name == "backslash-before-at" else _UNKNOWN, template)
            for name, template in _SPELLINGS.items()
        ),
        made("address-of-64-kb", _TOO_LONG, lambda site: f"{site.images.url}/{'a' * 65_536}"),
        made("address-of-20-mb", _TOO_LONG, lambda _: "http://" + "a" * 20_000_000),
        made("address-of-20-mb-of-ats", _TOO_LONG, lambda _: "http://" + "@" * 20_000_000),
        made(
            "address-with-secret-query", _GONE, lambda site: f"{site.images.url}/a?signature={site.secrets.signature}"
        ),
    ]


def send(data: bytes = b"", *, status: str = "200 OK", **headers: str) -> Answer:
    """Send something, under these headers, and end the connection."""
    return hosts.reply(data, status=status, connection="close", **headers)


def redirect(location: str, status: str = "302 Found") -> Answer:
    """Lead to another address."""
    return send(status=status, location=location)


def send_picture(**headers: str) -> Answer:
    """Send the picture, under these headers."""
    return send(pictures.plain(), **headers)


def _tokens() -> list[Case]:
    """What would like to be given Label Studio's token; that it is not, is part of what harm is looked for."""
    return [
        *(given(f"token-{name}", _UNKNOWN, template) for name, template in _TOKEN_ELSEWHERE.items()),
        *(given(f"token-{name}", _FORBIDDEN, template) for name, template in _TOKEN_AT_HOME.items()),
        made("token-to-allowed-origin", PLAIN, lambda site: site.images.serve("/data/upload/1/a.png", send_picture())),
        made("token-through-redirect", PLAIN, _leads_away),
        made(
            "token-there-and-back",
            _FORBIDDEN,
            lambda site: site.images.serve("/back", redirect(f"{site.studio.url}/api/projects/")),
        ),
    ]


def _leads_away(site: Site) -> str:
    site.studio.serve("/data/upload/1/away.png", redirect(site.images.serve("/away.png", send_picture())))
    return "/data/upload/1/away.png"


def _paths() -> list[Case]:
    """Label Studio's own paths, keys of its storages, and local files."""
    local = "/data/local-files/?d="
    return [
        given("path-api", _NO_IMAGE_PATH, "/api/projects/"),
        given("path-logout", _NO_IMAGE_PATH, "/user/logout"),
        given("path-climbing", _NO_IMAGE_PATH, "/data/../api/projects/"),
        given("upload-climbing", refused_fetch("answered 403|path on which"), "/data/upload/../../api/projects/"),
        *(made(f"s3-key-{name}", PLAIN, partial(_resolved, f"s3://bucket/{key}")) for name, key in _S3_KEYS.items()),
        given("s3-key-of-9-kb", _TOO_LONG, "s3://bucket/" + "a" * 9_000),
        given("local-good", PLAIN, f"{local}sub/good.png"),
        *(given(f"local-{name}", _NOT_BELOW, local + path) for name, path in LOCAL_FILES.items()),
        given("local-100-gb", TOO_LARGE, f"{local}sparse.png"),
        given("local-twice", PLAIN, f"{local}sub/good.png&d=../secret.png"),  # the first counts
    ]


def _resolved(key: str, site: Site) -> str:
    site.studio.serve("/tasks/2/resolve/", send_picture())
    return key


def _no_addresses() -> list[Case]:
    return [
        *_data_uris(),
        *(
            given(f"reference-{text[:14].strip('/').replace('..', 'above')}", _NO_REFERENCE, text)
            for text in _NO_REFERENCES
        ),
        *(
            given(f"reference-no-text-{number}", Refused("no_image", "expected an image's address"), value)
            for number, value in enumerate(_NO_TEXTS, start=1)
        ),
        given("reference-nul", _NO_REFERENCE, "\0\0\0"),
        given("reference-surrogate", _UNKNOWN, "http://\ud800.test/a.png"),
        given("reference-surrogate-in-path", refused_fetch(""), "http://{allowed}/\ud800.png"),
        given("reference-forges-log", _NO_REFERENCE, 'x\n{"forged": true}\n'),
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
        *(given(f"data-{name}", PLAIN, uri) for name, uri in good.items()),
        given("data-nothing", refused_fetch("holds no data"), "data:"),
        given("data-no-comma", refused_fetch("holds no data"), "data:image/png;base64"),
        given("data-bad-base64", _NOT_BASE64, "data:image/png;base64,!!!!"),
        given("data-svg", _OTHER_FORMAT, data_uri(b"<svg/>", "image/svg+xml")),
        given("data-url-safe-base64", _NOT_BASE64, "data:image/png;base64,-_-_"),
        given("data-non-ascii", refused_fetch("not valid base64|cannot"), "data:image/png;base64,\u00e4\u00f6"),
        made("data-of-21-mb", TOO_LARGE, lambda _: data_uri(pictures.plain().ljust(21 << 20, b"\0"))),
        made("data-of-10-million-escapes", refused_fetch("use base64"), lambda _: "data:image/png," + "%41" * 10**7),
    ]
