"""Runs `make hostile`, and checks that its cases escape from servers without the corresponding defence."""

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

REPLACE = """
import contextlib
import pkgutil


def replace(name, value):
    owner, _, attribute = name.rpartition(".")
    original = getattr(pkgutil.resolve_name(owner), attribute)
    setattr(pkgutil.resolve_name(owner), attribute, value)
    return original


def do_nothing(*_):
    pass


"""

WITHOUT = {
    "decoding-limits": (
        """
replace("contract.images.preprocess._MAX_READS", 10**9)
replace("contract.images.preprocess._MAX_SCANNED_PIXELS", 10**15)
replace("contract.images.preprocess._turn_upright", do_nothing)
decode = replace("contract.images.preprocess._to_pixels", lambda image, data, spec, _: decode(image, data, spec, 10**6))
""",
        "png-400-megapixels tiff-giant-tile jpeg-5-million-segments jpeg-1000-scans exif-orientation-6",
    ),
    "fetching-limits": (
        """
replace("contract.images.connections.is_public", lambda _: True)
replace("contract.images.connections.abort_after", lambda *_: contextlib.nullcontext())
replace("contract.images.download.abort_after", lambda *_: contextlib.nullcontext())
replace("contract.images.download.MAX_REFERENCE_LENGTH", 10**9)
replace("contract.images.fetch.MAX_REFERENCE_LENGTH", 10**9)
replace("contract.images.fetch.MAX_REDIRECTS", 9)
replace("contract.images.fetch.read_local_file", lambda root, name, **_: ((root / name).read_bytes(), None))
replace("contract.images.label_studio_files.LabelStudioAddresses.owns", lambda *_: True)
""",
        "loopback-127.0.0.1 redirect-to-loopback redirect-chain-of-4 "
        "ambiguous-http://{allowed}@{canary}/a.png token-to-allowed-origin token-through-redirect "
        "token-redirected-to-api local-file-../secret.png local-file-link.png s3-key-of-9-kb host-trickles-head",
    ),
    "authentication": (
        """
replace("server.http.auth.Guard.check", do_nothing)
replace("server.observe.logs.accept_request_id", lambda offered: offered)
""",
        'authorization-missing webhook-secret-wrong unauthenticated-versions request-id-"><script>',
    ),
    "host-and-origin-checks": (
        """
replace("server.http.origins.Origins.check_host", do_nothing)
replace("server.http.origins.Origins.check_sender", do_nothing)
""",
        "dns-rebinding-page dns-rebinding-webhook host-header-127.0.0.1.evil.test csrf-webhook-from-null "
        "csrf-webhook-as-text/plain csrf-predict-as-no-content-type",
    ),
    "client-timeouts": (
        'replace("server.http.worker.Worker.murder_pending", do_nothing)',
        "slow-head-timeout slow-body-timeout slow-reader-timeout",
    ),
    "threads-for-slow-hosts": (
        'replace("server.inference.host_queues._SPARE_THREADS", 0)',
        "host-silent-at-64-addresses",
    ),
    "connection-limit": (
        'replace("server.http.worker.Worker._evict", do_nothing)',
        "connections-above-limit",
    ),
    "memory-limit": (
        'replace("server.http.worker.Worker._limit_buffers", do_nothing)',
        "80-unfinished-bodies-of-16-mb",
    ),
    "non-blocking-reads": (
        """
class BlockingRead:
    def __get__(self, conn, _):
        conn.socket.setblocking(True)
        while conn._unread_bytes < conn._body_bytes and (chunk := conn.socket.recv(1 << 16)):
            conn.sock.received += chunk
        return True

replace("server.http.connections.Connection.is_complete", BlockingRead())
""",
        "2000-slow-bodies",
    ),
}
"""By defence, Python code that removes it, and the cases that must then escape."""


@pytest.mark.rare
@pytest.mark.timeout(1800)
def test_every_case_is_contained():
    """Each case has its expected outcome in time, the server stays healthy, and no secret leaks."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.hostile"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    summary = json.loads(lines[-1])
    assert summary["failed"] == [], "\n".join(line for line in lines if line.startswith("ESCAPED"))
    assert summary["contained"] == summary["cases"] == len(summary["names"]) >= 640
    assert done.returncode == 0


def test_removed_defences_and_their_cases_exist():
    """Otherwise a defence would not be removed, or a case not run."""
    program = REPLACE + "".join(code + "\n" for code, _ in WITHOUT.values())
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {name for _, names in WITHOUT.values() for name in names.split()} <= {case.name for case in CASES}


@pytest.mark.rare
@pytest.mark.parametrize("defence", WITHOUT)
def test_cases_escape_from_a_server_without_the_defence(defence, tmp_path: Path):
    """So no case passes only because its attack has no effect."""
    code, names = WITHOUT[defence]
    (tmp_path / "sitecustomize.py").write_text(REPLACE + code + "\n", encoding="utf-8")
    chosen = [case for case in CASES if case.name in names.split()]
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(CHECKOUT)]), "LABELNEXT_DEADLINE_S": "25"}
    with site(environment) as attacked:
        contained = [verdict.case.name for verdict in run(attacked, chosen, batch=1) if verdict.escape is None]
    assert contained == []
