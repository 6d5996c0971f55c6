"""URLs as browsers read them; tests/system/test_browser.py compares the tables with a real browser."""

import base64
import io
from contextlib import suppress

import pytest
from PIL import Image

from contract.errors import FetchError
from contract.images.download import HttpUrl
from contract.images.fetch import Fetcher, FetchSettings
from contract.images.urls import normalise_reference


def _png() -> bytes:
    """An image whose base64 ends in two padding characters."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(file, "PNG")
    return file.getvalue().ljust(3 * (len(file.getvalue()) // 3) + 4, b"\0")


PNG = _png()
B64 = base64.b64encode(PNG).decode()

URLS = {
    "HTTP://Host.Test/A.png": "http://host.test/A.png",
    " \n http://host.test/a.png\t ": "http://host.test/a.png",
    "ht\ttp://ho\nst.test/a.\r\npng": "http://host.test/a.png",
    "http:\\\\host.test\\a.png": "http://host.test/a.png",
    "http:///host.test/a.png": "http://host.test/a.png",
    "http://host.test\\@other.test/a.png": "http://host.test/@other.test/a.png",
    "http://host.test:80/a.png": "http://host.test/a.png",
    "https://host.test:00443/a.png": "https://host.test/a.png",
    "http://host.test/b/%2E%2e/.%2e/%2e/a.png": "http://host.test/a.png",
    "http://b\u00fccher.test/a.png": "http://xn--bcher-kva.test/a.png",
    "http://B\u00dcCHER.test/\u00e4 b.png": "http://xn--bcher-kva.test/%C3%A4%20b.png",
    "http://fa\u00df.test/a.png": "http://xn--fa-hia.test/a.png",
    "http://\u2603.test/a.png": "http://xn--n3h.test/a.png",
    "http://\uff11\uff12\uff17\u30020.0.1/a.png": "http://127.0.0.1/a.png",
    "http://%31%32%37.0.0.1/a.png": "http://127.0.0.1/a.png",
    "http://0x7f.1/a.png": "http://127.0.0.1/a.png",
    "http://017700000001/a.png": "http://127.0.0.1/a.png",
    "http://127.0.0.1./a.png": "http://127.0.0.1/a.png",
    "http://[0:0::0001]/a.png": "http://[::1]/a.png",
    "http://[2001:DB8::A]:8080/a.png": "http://[2001:db8::a]:8080/a.png",
}
"""URLs as written, and as a browser shows them."""

INVALID_URLS = (
    "http://",
    "http://[::1/a.png",
    "http://256.1/a.png",
    "http://1.2.3.08/a.png",
    "http://host.test:65536/a.png",
    "http://host.test:0x50/a.png",
    "http://host%00.test/a.png",
    "http://ho<st.test/a.png",
    "http://\ud800.test/a.png",
)
"""URLs that browsers reject."""

DATA_URIS = {
    f"DATA:IMAGE/PNG;BASE64,{B64}": True,
    f"\n  data:image/png;base64,{B64}  \n": True,
    f"da\tta:image/png;base64,{B64}": True,
    "data:image/png;base64," + "\r\n".join(B64[i : i + 20] for i in range(0, len(B64), 20)): True,
    "data:image/png;base64," + "%0A".join(B64[i : i + 20] for i in range(0, len(B64), 20)): True,
    "data:image/png;base64," + " ".join(B64): True,
    f"data:image/png;base64,{B64.rstrip('=')}": True,
    f"data:image/png; base64 ,{B64}": True,
    f"data:image/png;charset=utf-8;base64,{B64}": True,
    f"data:;base64,{B64}": True,
    f"data:image/png;base64,{B64}#fragment": True,
    "data:," + "".join(f"%{byte:02x}" for byte in PNG): True,
    f"data:image/png;base64,{B64.rstrip('=')}===": False,
    f"data:image/png;base64,{B64.removesuffix('=')}": False,
    f"data:image/png;base64,{B64}?query": False,
    f"data:image/png;base64,-{B64[1:]}": False,
    f"data:base64,{B64}": False,
    f"data:image/png;base64;foo=bar,{B64}": False,
}
"""Data URIs, and whether a browser shows their image."""


def _as_shown(url: str) -> str:
    """Return a URL as browsers show it, without a default port."""
    target = HttpUrl.parse(url)
    port = {"http": ":80", "https": ":443"}[target.origin.scheme]
    return target.url.replace(port + "/", "/")


@pytest.mark.parametrize(("url", "shown"), URLS.items(), ids=ascii)
def test_urls_are_normalised_as_in_browsers(url: str, shown: str):
    assert _as_shown(url) == shown


def test_zone_may_be_escaped():
    escaped, plain = (HttpUrl.parse(f"http://[fe80::1{zone}]:9000") for zone in ("%25eth0", "%eth0"))
    assert escaped.origin == plain.origin


@pytest.mark.parametrize("url", INVALID_URLS, ids=ascii)
def test_rejects_urls_that_browsers_reject(url: str):
    with pytest.raises(ValueError):  # noqa: PT011  # browsers do not say why either
        HttpUrl.parse(url)


@pytest.mark.parametrize(
    ("reference", "normalised"),
    [
        ("\\\\host\\a.png", "//host/a.png"),
        ("/\\host/a.png", "//host/a.png"),
        ("////host/a.png", "//host/a.png"),
        ("/data\\upload\\1\\a.png", "/data/upload/1/a.png"),
        ("S3://Bucket/a\\b ", "s3://Bucket/a\\b"),
        ("C:\\a.png", "c:\\a.png"),
        ("/data/local-files/?d=a\\b.png", "/data/local-files/?d=a\\b.png"),
    ],
)
def test_relative_references_are_normalised_as_in_browsers(reference: str, normalised: str):
    """Backslashes become slashes in paths and before hosts, and nowhere else."""
    assert normalise_reference(reference) == normalised


@pytest.mark.parametrize(("uri", "shown"), DATA_URIS.items(), ids=map(str, range(len(DATA_URIS))))
def test_data_uris_are_decoded_as_in_browsers(uri: str, shown: bool):
    """Line breaks, spaces and missing padding are accepted; other alphabets and wrong padding are not."""
    data = b""
    with Fetcher(FetchSettings()) as fetcher, suppress(FetchError):
        assert not fetcher.is_remote(uri)
        data = fetcher.fetch(uri)
    assert (data == PNG) is shown
