"""Everything hostile against a real server; and against servers that lack defences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.hostile.__main__ import CASES
from bench.hostile.case import run
from bench.hostile.site import site
from demo.product import CHECKOUT

TAKE = """
import contextlib
import pkgutil


def take(name, value):
    owner, _, attribute = name.rpartition(".")
    taken = getattr(pkgutil.resolve_name(owner), attribute)
    setattr(pkgutil.resolve_name(owner), attribute, value)
    return taken


def nothing(*_):
    pass


"""

LACKING = {
    "decoding": (
        """
take("contract.images.preprocess._MAX_READS", 10**9)
take("contract.images.preprocess._MAX_SCANNED_PIXELS", 10**15)
take("contract.images.preprocess._turn_upright", nothing)
decode = take("contract.images.preprocess._to_pixels", lambda image, data, spec, _: decode(image, data, spec, 10**6))
""",
        "png-400-megapixels tiff-giant-tile jpeg-5-million-segments jpeg-1000-scans exif-orientation-6",
    ),
    "fetching": (
        """
take("contract.images.connections.is_public", lambda _: True)
take("contract.images.connections.abort_after", lambda *_: contextlib.nullcontext())
take("contract.images.download.abort_after", lambda *_: contextlib.nullcontext())
take("contract.images.download.LONGEST_REFERENCE", 10**9)
take("contract.images.fetch.LONGEST_REFERENCE", 10**9)
take("contract.images.fetch.MAX_REDIRECTS", 9)
take("contract.images.fetch.read_local_file", lambda root, name, **_: ((root / name).read_bytes(), None))
take("contract.images.label_studio_files.Studio.owns", lambda *_: True)
""",
        "this-machine-127.0.0.1 redirect-to-this-machine redirect-chain-of-4 "
        "spelling-http://{allowed}@{canary}/a.png token-to-allowed-origin token-through-redirect token-there-and-back "
        "local-../secret.png local-link.png s3-key-of-9-kb host-trickles-head",
    ),
    "letting-in": (
        """
take("server.http.auth.Guard.check", nothing)
take("server.observe.logs.accept_request_id", lambda offered: offered)
""",
        'password-absent webhook-secret-wrong stranger-asks-versions request-id-"><script>',
    ),
    "keeping-pages-away": (
        """
take("server.http.origins.Origins.check_host", nothing)
take("server.http.origins.Origins.check_sender", nothing)
""",
        "rebound-page rebound-webhook host-127.0.0.1.evil.test page-of-null-starts-training "
        "page-sends-webhook-as-text-plain page-sends-predict-as-nothing",
    ),
    "ending-what-is-slow": (
        'take("server.http.worker.Worker.murder_pending", nothing)',
        "slow-head-in-time slow-body-in-time slow-reader-in-time",
    ),
    "leaving-places-to-others": (
        'take("server.inference.host_queues._SLOW_THREADS", 0)',
        "host-silent-under-64-names",
    ),
    "bounding-connections": (
        'take("server.http.worker.Worker._evict", nothing)',
        "more-connections-than-may-be",
    ),
    "bounding-what-is-held": (
        'take("server.http.worker.Worker._relieve", nothing)',
        "80-bodies-of-16-mb-that-stop",
    ),
    "waiting-in-the-loop": (
        """
class Waiting:
    def __get__(self, conn, _):
        conn.socket.setblocking(True)
        while conn._unread_bytes < conn._body_bytes and (piece := conn.socket.recv(1 << 16)):
            conn.sock.received += piece
        return True

take("server.http.connections.Connection.is_whole", Waiting())
""",
        "2000-slow-bodies",
    ),
}
"""Of what a server is robbed, by the Python that does it, and cases that must then have an effect."""


@pytest.mark.rare
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


def test_what_servers_are_robbed_of_is_there():
    """Under its name: where it has another one by now, nothing would be taken."""
    program = TAKE + "".join(code + "\n" for code, _ in LACKING.values())
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.rare
@pytest.mark.parametrize("lack", LACKING)
def test_a_server_without_its_defences_is_found_out(lack, tmp_path: Path):
    """No case passes for want of an attack: with their defences gone, all of these have an effect."""
    code, text = LACKING[lack]
    names = text.split()
    (tmp_path / "sitecustomize.py").write_text(TAKE + code + "\n", encoding="utf-8")
    chosen = [case for case in CASES if case.name in names]
    assert len(chosen) == len(names)
    robbed = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(CHECKOUT)]), "LABELNEXT_DEADLINE_S": "25"}
    with site(robbed) as attacked:
        contained = [verdict.case.name for verdict in run(attacked, chosen, batch=1) if verdict.escape is None]
    assert contained == []
