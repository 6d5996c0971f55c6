import dataclasses
import json
import os
import shutil
from itertools import product
from urllib.parse import quote, urljoin

import pytest

from bench.subjects.tiny_model import publish
from contract.errors import DigestError
from contract.versions.manifest import FileDigest
from contract.versions.version import digest_file
from server.page import reports
from server.page.reports import has_report, read_report

PAGE = "<!doctype html><title>Käfer</title>".encode()
REPORT = {
    "index.html": PAGE,
    "figures.json": b'{"ece": 0.1}',
    "classes.csv": b"class,f1\nant,0.5\n",
    "x.svg": b"<svg/>",
}

UNKNOWN_VERSIONS = [
    "20260102T030405678Z-0a1b2c",
    "",
    ".",
    "..",
    "CURRENT",
    "../default",
    "/",
    "v\0",
    "\udcff",
    "a" * 5000,
]
HOSTILE = [
    *("..", "../manifest.json", "../model.onnx", "../report/index.html", "./index.html", "index.html/", "/index.html"),
    *("/etc/passwd", "..\\manifest.json", "%2e%2e%2fmanifest.json", "index.html\0", "index.html\0.png", "INDEX.HTML"),
    *("missing.html", "", ".", "a" * 5000, "\udcff", "C:\\index.html"),
]


def encode_all(name):
    return "".join(f"%{byte:02x}" for byte in name)


@pytest.fixture
def version(repository):
    return publish(repository, report=REPORT)


@pytest.fixture
def folder(repository, version):
    return repository.folder / version / "report"


@pytest.fixture
def client(start_app, version):
    return start_app().test_client()


def update_manifest(folder, name, digest=None):
    """Write a file's current digest to the manifest, as an attacker with write access could."""
    path = folder.parent / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][f"report/{name}"] = dataclasses.asdict(digest or digest_file(folder / name))
    path.write_text(json.dumps(manifest))


class TestReading:
    def test_has_report(self, repository, version):
        assert has_report(repository.open(version).manifest)
        assert not has_report(repository.open(publish(repository)).manifest)
        assert not has_report(repository.open(publish(repository, report={"figures.json": b"{}"})).manifest)

    def test_the_report_of_a_removed_version_is_kept(self, repository, version):
        before = {name: read_report(repository, version, name) for name in REPORT}
        publish(repository, report={"index.html": b"newer"})
        assert {name: read_report(repository, version, name) for name in REPORT} == before
        repository.retire(version)
        assert {name: read_report(repository, version, name) for name in REPORT} == before

    def test_added_and_changed_files_are_not_read(self, repository, version, folder, caplog):
        (folder / "added.html").write_bytes(b"<p>added</p>")
        assert read_report(repository, version, "added.html") is None
        for content in (PAGE.swapcase(), PAGE[:-1], PAGE + b"x", b""):
            (folder / "index.html").write_bytes(content)
            assert read_report(repository, version, "index.html") is None
        assert version in caplog.text
        assert "publish again" in caplog.text

    def test_files_above_the_size_limit_are_not_read(self, repository, version, monkeypatch, caplog):
        monkeypatch.setattr(reports, "_MAX_FILE_BYTES", len(PAGE) - 1)
        assert read_report(repository, version, "index.html") is None
        assert f"at most {len(PAGE) - 1} are read" in caplog.text
        assert read_report(repository, version, "figures.json") is not None

    def test_a_broken_manifest_has_no_report(self, repository, version, folder):
        for text in ("", "[" * 100_000, '{"contract": 2}'):
            (folder.parent / "manifest.json").write_text(text)
            assert read_report(repository, version, "index.html") is None


class TestLinks:
    """Links with correct digests in the manifest are not followed."""

    @pytest.mark.parametrize("target", ["../manifest.json", "{outside}", "index.html", "link.html", None])
    def test_only_regular_files_are_read(self, repository, version, folder, tmp_path, target):
        """No links, whether out of the folder, within it or cyclic, and no pipes; such a version is refused."""
        outside = tmp_path / "secret.html"
        outside.write_text("secret")
        link = folder / "link.html"
        if target:
            link.symlink_to(target.format(outside=outside))
        else:
            os.mkfifo(link)
        update_manifest(folder, "link.html", None if target and target != "link.html" else FileDigest("0" * 64, 0))
        assert read_report(repository, version, "link.html") is None
        with pytest.raises(DigestError):
            repository.open(version)

    def test_the_repository_may_be_a_link_but_not_the_report(self, repository, version, folder, tmp_path):
        """The operator chooses where models are stored."""
        shutil.move(repository.root, tmp_path / "elsewhere")
        repository.root.symlink_to(tmp_path / "elsewhere")
        assert read_report(repository, version, "index.html") is not None
        shutil.move(folder, tmp_path / "report")
        folder.symlink_to(tmp_path / "report")
        assert read_report(repository, version, "index.html") is None


class TestRoutes:
    def test_files_of_a_report_are_sent_with_restrictive_headers(self, client, version):
        """An address without its final slash is redirected."""
        types = ["text/html; charset=utf-8"] * 2
        types += ["application/json", "text/csv; charset=utf-8", "application/octet-stream"]
        for (file, content), kind in zip((("", PAGE), *REPORT.items()), types, strict=True):
            reply = client.get(f"/report/{version}/{file}")
            assert (reply.status_code, reply.data, reply.content_type) == (200, content, kind)
            policy = dict(part.split(" ", 1) for part in reply.headers["Content-Security-Policy"].split("; "))
            assert policy == {
                **dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'"),
                "img-src": "data:",
                "style-src": "'unsafe-inline'",
            }
            assert reply.headers["X-Content-Type-Options"] == "nosniff"
            assert reply.headers["Referrer-Policy"] == "no-referrer"
            assert reply.headers["Cache-Control"] == "private, max-age=86400"
        reply = client.get(f"/report/{version}")
        assert (reply.status_code, reply.headers["Location"]) == (308, f"{version}/")

    @pytest.mark.slow
    @pytest.mark.parametrize("spell", [quote, encode_all], ids=["quoted", "all-encoded"])
    def test_hostile_files_are_not_found(self, client, version, spell, caplog):
        """An additional slash leads to the report. Attempts are not logged as warnings."""
        addresses = {name: f"/report/{version}/{spell(os.fsencode(name))}" for name in HOSTILE}
        replies = {name: client.get(address, follow_redirects=True) for name, address in addresses.items()}
        assert {replies.pop(name).data for name in ("", "/index.html")} == {PAGE}
        assert {name: reply.status_code for name, reply in replies.items()} == dict.fromkeys(replies, 404)
        for reply in replies.values():
            assert set(reply.json) == {"error", "detail", "request_id"}
            assert "Cache-Control" not in reply.headers
        assert not [record for record in caplog.records if record.levelname != "INFO"]

    def test_hostile_versions_are_not_found(self, client):
        names = (*UNKNOWN_VERSIONS, "https:evil.example", "evil.example", "/evil.example", "//evil.example")
        for name, end in product(names, ("", "/", "/index.html")):
            address = f"http://localhost/report/{quote(os.fsencode(name), safe='')}{end}"
            reply = client.get(address)
            if reply.status_code == 308:
                target = urljoin(address, reply.headers["Location"])
                assert target.startswith("http://localhost/report/"), name
                reply = client.get(target)
            assert reply.status_code == 404, name

    def test_errors_do_not_reveal_local_paths(self, client, repository, folder, version):
        (folder / "index.html").unlink()
        reply = client.get(f"/report/{version}/")
        assert reply.status_code == 404
        assert str(repository.root) not in reply.text
