import base64
import os
import time

import pytest

import contract.images.connections
import contract.images.local
from bench.hostile import pictures
from bench.hostile.references import LOCAL_FILES
from bench.hostile.site import write_files
from contract.errors import FetchError
from tests.contract.images.conftest import IMAGE, LEGACY_TOKEN, UPLOAD, authorizations


class TestReferences:
    @pytest.mark.parametrize(
        ("prefix", "reference"), [("", UPLOAD), ("/studio", UPLOAD), ("/studio", f"/studio{UPLOAD}")]
    )
    def test_uploads_are_fetched_from_label_studio(self, label_studio, make_fetcher, prefix, reference):
        """With the legacy token, and below Label Studio's path prefix, whether or not the reference has it."""
        label_studio.serve(f"{prefix}{UPLOAD}", IMAGE)
        assert (
            make_fetcher(label_studio_url=f"{label_studio.url}{prefix}/", api_token=LEGACY_TOKEN).fetch(reference)
            == IMAGE
        )
        assert authorizations(label_studio) == [f"Token {LEGACY_TOKEN}"]

    @pytest.mark.parametrize("uri", ["s3://bucket/a b.png", "gs://bucket/a.png", "azure-blob://box/ä.png"])
    def test_storage_objects_are_resolved_by_label_studio(self, label_studio, other_host, make_fetcher, uri):
        """The task's resolve endpoint gets the URI in URL-safe base64; its redirect is followed without the token."""
        other_host.serve("/signed", IMAGE)
        label_studio.serve("/tasks/7/resolve/", status=303, location=f"{other_host.url}/signed?signature=secret")
        fetcher = make_fetcher(api_token=LEGACY_TOKEN, allowed_origins=(other_host.url,))
        assert fetcher.fetch(uri, task_id=7, project_id=1) == IMAGE
        query = label_studio.requests[0].path.partition("?fileuri=")[2].replace("%3D", "=")
        assert base64.urlsafe_b64decode(query).decode() == uri
        assert authorizations(label_studio) + authorizations(other_host) == [f"Token {LEGACY_TOKEN}", None]

    def test_storage_objects_without_a_task_are_resolved_for_the_project(self, label_studio, make_fetcher):
        label_studio.serve("/projects/3/resolve/", IMAGE)
        assert make_fetcher().fetch("s3://bucket/a.png", project_id=3) == IMAGE

    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            ("data:image/png;base64,a", "not valid base64"),
            ("data:image/png;base64,!!!!", "not valid base64"),
            ("data:image/png;base64,", "contains no data"),
            ("data:", "contains no data"),
            ("data:;base64,aGVsbG8=", "more than 4 bytes"),
            ("data:,%41%42%43%44", "use base64"),
        ],
    )
    def test_rejects_broken_and_too_large_data_uris(self, make_fetcher, monkeypatch, uri, message):
        """The size limit applies; ten million escapes would take seconds and gigabytes to decode."""
        monkeypatch.setattr(contract.images.local, "_MAX_ESCAPES", 3)
        assert make_fetcher(max_bytes=4).fetch("data:,%41%42%43") == b"ABC"
        with pytest.raises(FetchError, match=rf"data:\.\.\. .*{message}"):
            make_fetcher(max_bytes=4).fetch(uri)

    @pytest.mark.parametrize("start", ["http://127.0.0.1:1/", "s3://bucket/", "/data/upload/", "/data/local-files/?d="])
    def test_rejects_long_references_without_parsing(self, make_fetcher, tmp_path, start):
        """Parsing megabytes would be slow; the messages do not contain them."""
        fetcher = make_fetcher(label_studio_url="http://127.0.0.1:1", local_files_root=tmp_path)
        for method in (fetcher.fetch, fetcher.source):
            with pytest.raises(FetchError, match="at most 8192 characters, got a reference of") as caught:
                method(start + "a" * 8192, task_id=1)
            assert "aaa" not in str(caught.value)

    @pytest.mark.parametrize(
        ("reference", "message"),
        [
            *(
                (other, "import the task again")
                for other in ("file:///etc/passwd", "a.png", "", "ftp://host/a.png", "C:\\a.png")
            ),
            *(
                (path, "path on which Label Studio serves images")
                for path in (
                    "/api/projects",
                    "/user/logout",
                    "/data/../api/projects",
                    "/data/upload/../api/projects",
                    "/tasks/1/x",
                )
            ),
            ("s3://bucket/a.png", "task or a project"),
        ],
    )
    def test_rejects_other_references(self, label_studio, make_fetcher, reference, message):
        """Only references that Label Studio writes are fetched; no task can make us call its API with our token."""
        with pytest.raises(FetchError, match=message) as caught:
            make_fetcher(api_token=LEGACY_TOKEN).fetch(reference)
        assert not label_studio.requests
        assert not caught.value.later

    def test_paths_of_label_studio_need_its_address(self, make_fetcher):
        with pytest.raises(FetchError, match="LABELNEXT_LABEL_STUDIO_URL"):
            make_fetcher(label_studio_url=None).fetch(UPLOAD)


class TestLocalFiles:
    @pytest.fixture
    def root(self, tmp_path):
        (tmp_path / "secret").write_bytes(b"secret")
        root = tmp_path / "files"
        (root / "sub").mkdir(parents=True)
        (root / "sub" / "b c.png").write_bytes(IMAGE)
        return root

    def test_reads_files_below_the_root(self, root, make_fetcher):
        """By the path in the query, in each form that Label Studio accepts, also in full URLs."""
        fetcher = make_fetcher(local_files_root=root, label_studio_url="http://127.0.0.1:9/studio")
        for prefix in ("", "/studio", "http://127.0.0.1:9/studio"):
            for name in ("sub%2Fb%20c.png", "/sub/b c.png", "sub/../sub//b+c.png"):
                reference = f"{prefix}/data/local-files/?d={name}"
                assert fetcher.fetch(reference) == IMAGE
                assert not fetcher.is_remote(reference)

    @pytest.mark.parametrize("name", LOCAL_FILES)
    def test_reads_no_other_files(self, tmp_path, make_fetcher, name):
        """Nothing outside the root, no folder, no pipe, which would block, and no loop of links."""
        fetcher = make_fetcher(local_files_root=write_files(tmp_path, "secret"))
        with pytest.raises(FetchError, match="local file"):
            fetcher.fetch(f"/data/local-files/?d={name}")
        assert fetcher.fetch("/data/local-files/?d=sub/good.png") == pictures.plain()

    @pytest.fixture
    def old_files(self, monkeypatch):
        """The files were written ten seconds ago."""
        monkeypatch.setattr("contract.images.local.time.time_ns", lambda: int((time.time() + 10) * 1e9))

    @pytest.mark.usefixtures("old_files")
    def test_unchanged_file_is_not_read_again(self, root, make_fetcher):
        """The change time reveals a change even if size and date were restored."""
        reference, fetcher, file = (
            "/data/local-files/?d=sub/b c.png",
            make_fetcher(local_files_root=root),
            root / "sub/b c.png",
        )
        first = fetcher.fetch_if_changed(reference, known=None)
        second = fetcher.fetch_if_changed(reference, known=first.validators)
        assert (first.data, first.unchanged, second.data, second.unchanged) == (IMAGE, False, b"", True)
        assert second.validators == first.validators
        dates = file.stat()
        file.write_bytes(IMAGE[::-1])
        os.utime(file, ns=(dates.st_atime_ns, dates.st_mtime_ns))
        changed = fetcher.fetch_if_changed(reference, known=first.validators)
        assert (changed.data, changed.unchanged) == (IMAGE[::-1], False)
        (root / "other").write_bytes(IMAGE)
        (root / "other").replace(file)
        assert fetcher.fetch_if_changed(reference, known=changed.validators).data == IMAGE

    @pytest.mark.parametrize("date", [0, None], ids=["old date", "new"])
    def test_file_that_changed_a_moment_ago_is_read_each_time(self, root, make_fetcher, date):
        """Some file systems have a resolution of seconds, so it may change again within its date."""
        os.utime(root / "sub/b c.png", None if date is None else (date, date))
        fetcher = make_fetcher(local_files_root=root)
        known = fetcher.fetch_if_changed("/data/local-files/?d=sub/b c.png", known=None).validators
        assert not known.can_ask
        assert fetcher.fetch_if_changed("/data/local-files/?d=sub/b c.png", known=known).data == IMAGE

    @pytest.mark.usefixtures("old_files")
    def test_validators_do_not_reveal_files_outside_the_root(self, root, make_fetcher):
        """Not even with validators of a file that was replaced by a link."""
        fetcher, file = make_fetcher(local_files_root=root), root / "sub/b c.png"
        known = fetcher.fetch_if_changed("/data/local-files/?d=sub/b c.png", known=None).validators
        file.rename(root.parent / "moved")
        file.symlink_to(root.parent / "moved")
        with pytest.raises(FetchError, match="the local file"):
            fetcher.fetch_if_changed("/data/local-files/?d=sub/b c.png", known=known)

    def test_rejects_large_files(self, root, make_fetcher):
        with pytest.raises(FetchError, match="more than 5 bytes"):
            make_fetcher(local_files_root=root, max_bytes=5).fetch("/data/local-files/?d=sub/b c.png")
