"""Everything hostile against a real server; and against servers that lack defences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.hostile.runner import CASES, run
from bench.hostile.site import site
from demo.product import CHECKOUT

pytestmark = pytest.mark.rare

LACKING = {
    "decoding": (
        """
import contract.images.preprocess as it
decode = it._to_pixels
it._to_pixels = lambda image, data, spec, _: decode(image, data, spec, 10**6)
it._MAX_READS = 10**9
it._MAX_SCANNED_PIXELS = 10**15
it._orientation = lambda _: 1
""",
        (
            "png-400-megapixels",
            "png-100-megapixels",
            "tiff-giant-tile",
            "jpeg-5-million-segments",
            "png-million-chunks-behind",
            "jpeg-1000-scans",
            "exif-orientation-2",
            "exif-orientation-5",
            "exif-orientation-6",
            "exif-orientation-jpeg",
        ),
    ),
    "fetching": (
        """
import contextlib, contract.images.download as download, contract.images.fetch as fetch
import contract.images.label_studio_files as studio
download.is_public = lambda _: True
download._cut_off = lambda *_: contextlib.nullcontext()
download.LONGEST_REFERENCE = fetch.LONGEST_REFERENCE = 10**9
fetch.MAX_REDIRECTS = 9
studio.Studio.owns = lambda *_: True
fetch._read_local = lambda root, name, limit: (root / name).read_bytes()
""",
        (
            "this-machine-dotted",
            "this-machine-hexadecimal",
            "this-machine-zero",
            "this-machine-ipv6-mapped",
            "redirect-to-this-machine",
            "spelling-user-is-allowed-origin",
            "redirect-chain-of-4",
            "token-to-allowed-origin",
            "token-through-redirect",
            "token-there-and-back",
            "token-api-climbing-escaped-url",
            "local-climbing",
            "local-link",
            "local-link-to-folder",
            "s3-key-of-9-kb",
            "host-trickles-head",
        ),
    ),
    "letting-in": (
        """
import server.http.auth, server.observe.logs
server.http.auth.Guard.check = lambda *_: None
server.observe.logs.accept_request_id = lambda offered: offered
""",
        (
            "password-absent",
            "password-of-another",
            "webhook-secret-wrong",
            "stranger-asks-versions",
            "request-id-of-markup",
        ),
    ),
    "keeping-pages-away": (
        "from server.http.origins import Origins as it; it.check_host = it.check_sender = lambda *_: None",
        (
            "rebound-page",
            "rebound-webhook",
            "host-behind-address",
            "page-of-null-starts-training",
            "page-sends-webhook-as-text-plain",
            "page-sends-predict-as-nothing",
        ),
    ),
    "ending-what-is-slow": (
        "import server.http.worker as it; it.Worker.murder_pending = lambda _: None",
        ("slow-head-in-time", "slow-body-in-time", "slow-reader-in-time"),
    ),
    "leaving-places-to-others": (
        "import server.inference.host_queues as it; it._SLOW_THREADS = 0",
        ("host-silent-under-64-names",),
    ),
    "bounding-connections": (
        "import server.http.worker as it; it.Worker._evict = lambda _: None",
        ("more-connections-than-may-be",),
    ),
    "bounding-what-is-held": (
        "import server.http.worker as it; it.Worker._relieve = lambda _: None",
        ("80-bodies-of-16-mb-that-stop",),
    ),
    "waiting-in-the-loop": (
        """
import server.http.worker as it
class Waiting:
    def __get__(self, conn, _):
        conn.socket.setblocking(True)
        while conn._unread_bytes < conn._body_bytes and (piece := conn.socket.recv(1 << 16)):
            conn.sock.received += piece
        return True
it.Connection.is_whole = Waiting()
""",
        ("2000-slow-bodies",),
    ),
}
"""Of what a server is robbed, by the Python that does it, and cases that must then have an effect."""


@pytest.mark.timeout(1800)
def test_everything_hostile_is_contained():
    """Each case is refused or scored as it must be, in its time, and the server is unharmed and has told nobody."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.hostile"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    summary = json.loads(lines[-1])
    assert summary["failed"] == [], "\n".join(line for line in lines if line.startswith("ESCAPED"))
    assert summary["contained"] == summary["cases"] == len(summary["names"]) >= 640
    assert done.returncode == 0


@pytest.mark.parametrize("lack", LACKING)
def test_a_server_without_its_defences_is_found_out(lack, tmp_path: Path):
    """No case passes for want of an attack: with their defences gone, all of these have an effect."""
    code, names = LACKING[lack]
    (tmp_path / "sitecustomize.py").write_text(code + "\n", encoding="utf-8")
    chosen = [case for case in CASES if case.name in names]
    assert len(chosen) == len(names)
    robbed = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(CHECKOUT)]), "LABELNEXT_DEADLINE_S": "25"}
    with site(robbed) as attacked:
        contained = [verdict.case.name for verdict in run(attacked, chosen, batch=1) if verdict.escape is None]
    assert contained == []
