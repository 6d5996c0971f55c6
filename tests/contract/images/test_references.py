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
from tests.contract.images.conftest import IMAGE, LEGACY, UPLOAD, tokens


class TestReferences:
    @pytest.mark.parametrize(
        ("prefix", "reference"), [("", UPLOAD), ("/studio", UPLOAD), ("/studio", f"/studio{UPLOAD}")]
    )
    def test_an_upload_is_fetched_from_label_studio(self, home, make, prefix, reference):
        """With the legacy token unchanged, and with its path prefix, whether or not the reference has it."""
        home.serve(f"{prefix}{UPLOAD}", IMAGE)
        assert make(label_studio_url=f"{home.url}{prefix}/", api_token=LEGACY).fetch(reference) == IMAGE
        assert tokens(home) == [f"Token {LEGACY}"]

    @pytest.mark.parametrize("uri", ["s3://bucket/a b.png", "gs://bucket/a.png", "azure-blob://box/ä.png"])
    def test_storage_objects_are_resolved_by_label_studio(self, home, elsewhere, make, uri):
        """The task's resolve endpoint gets the URI in URL-safe base64; its redirect is followed without the token."""
        elsewhere.serve("/signed", IMAGE)
        home.serve("/tasks/7/resolve/", status=303, location=f"{elsewhere.url}/signed?signature=secret")
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, allowed_origins=(elsewhere.url,))
        assert fetcher.fetch(uri, task_id=7, project_id=1) == IMAGE
        query = home.requests[0].path.partition("?fileuri=")[2].replace("%3D", "=")
        assert base64.urlsafe_b64decode(query).decode() == uri
        assert tokens(home) + tokens(elsewhere) == [f"Token {LEGACY}", None]

    def test_storage_objects_without_a_task_are_resolved_for_the_project(self, home, make):
        home.serve("/projects/3/resolve/", IMAGE)
        assert make(label_studio_url=home.url).fetch("s3://bucket/a.png", project_id=3) == IMAGE

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
    def test_data_uris_that_are_broken_or_too_large_are_refused(self, make, monkeypatch, uri, message):
        """The size limit applies; ten million escapes would take seconds and gigabytes to decode."""
        monkeypatch.setattr(contract.images.local, "_MAX_ESCAPES", 3)
        assert make(max_bytes=4).fetch("data:,%41%42%43") == b"ABC"
        with pytest.raises(FetchError, match=rf"data:\.\.\. .*{message}"):
            make(max_bytes=4).fetch(uri)

    @pytest.mark.parametrize("start", ["http://127.0.0.1:1/", "s3://bucket/", "/data/upload/", "/data/local-files/?d="])
    def test_long_references_are_refused_unread(self, make, tmp_path, start):
        """Parsing megabytes would be slow; messages do not contain them."""
        fetcher = make(label_studio_url="http://127.0.0.1:1", local_files_root=tmp_path)
        for ask in (fetcher.fetch, fetcher.source):
            with pytest.raises(FetchError, match="at most 8192 characters, got a reference of") as caught:
                ask(start + "a" * 8192, task_id=1)
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
    def test_other_references_are_refused(self, home, make, reference, message):
        """Only references that Label Studio writes are fetched; no task can make us call its API with our token."""
        with pytest.raises(FetchError, match=message) as caught:
            make(label_studio_url=home.url, api_token=LEGACY).fetch(reference)
        assert not home.requests
        assert not caught.value.later

    def test_paths_of_label_studio_need_its_address(self, make):
        with pytest.raises(FetchError, match="LABELNEXT_LABEL_STUDIO_URL"):
            make().fetch(UPLOAD)


class TestLocalFiles:
    @pytest.fixture
    def root(self, tmp_path):
        (tmp_path / "secret").write_bytes(b"secret")
        root = tmp_path / "files"
        (root / "sub").mkdir(parents=True)
        (root / "sub" / "b c.png").write_bytes(IMAGE)
        return root

    def test_files_below_the_root_are_read(self, root, make):
        """By the path in the query, in each form that Label Studio accepts, also in a full URL of Label Studio."""
        fetcher = make(local_files_root=root, label_studio_url="http://127.0.0.1:9/studio")
        for prefix in ("", "/studio", "http://127.0.0.1:9/studio"):
            for name in ("sub%2Fb%20c.png", "/sub/b c.png", "sub/../sub//b+c.png"):
                reference = f"{prefix}/data/local-files/?d={name}"
                assert fetcher.fetch(reference) == IMAGE
                assert not fetcher.is_remote(reference)

    @pytest.mark.parametrize("name", LOCAL_FILES)
    def test_nothing_else_is_read(self, tmp_path, make, name):
        """Nothing outside the root, no folder, and no pipe that would block; a loop of links fails only its image."""
        fetcher = make(local_files_root=write_files(tmp_path, "secret"))
        with pytest.raises(FetchError, match="local file"):
            fetcher.fetch(f"/data/local-files/?d={name}")
        assert fetcher.fetch("/data/local-files/?d=sub/good.png") == pictures.plain()

    @pytest.fixture
    def later(self, monkeypatch):
        """The files were written ten seconds ago."""
        monkeypatch.setattr("contract.images.local.time.time_ns", lambda: int((time.time() + 10) * 1e9))

    @pytest.mark.usefixtures("later")
    def test_an_unchanged_file_is_not_read_again(self, root, make):
        """The change time reveals a change even if size and date were restored."""
        reference, fetcher, file = "/data/local-files/?d=sub/b c.png", make(local_files_root=root), root / "sub/b c.png"
        first = fetcher.fetch_if_changed(reference, known=None)
        again = fetcher.fetch_if_changed(reference, known=first.validators)
        assert (first.data, first.unchanged, again.data, again.unchanged) == (IMAGE, False, b"", True)
        assert again.validators == first.validators
        dates = file.stat()
        file.write_bytes(IMAGE[::-1])
        os.utime(file, ns=(dates.st_atime_ns, dates.st_mtime_ns))
        changed = fetcher.fetch_if_changed(reference, known=first.validators)
        assert (changed.data, changed.unchanged) == (IMAGE[::-1], False)
        (root / "other").write_bytes(IMAGE)
        (root / "other").replace(file)
        assert fetcher.fetch_if_changed(reference, known=changed.validators).data == IMAGE

    @pytest.mark.parametrize("date", [0, None], ids=["given an old date", "new"])
    def test_a_file_that_may_change_within_its_date_is_read_each_time(self, root, make, date):
        """Some file systems count seconds, and the file was just written."""
        os.utime(root / "sub/b c.png", None if date is None else (date, date))
        fetcher = make(local_files_root=root)
        known = fetcher.fetch_if_changed("/data/local-files/?d=sub/b c.png", known=None).validators
        assert not known.can_ask
        assert fetcher.fetch_if_changed("/data/local-files/?d=sub/b c.png", known=known).data == IMAGE

    @pytest.mark.usefixtures("later")
    def test_of_another_file_nobody_learns_whether_it_changed(self, root, make):
        """Validators of a file inside the root are useless for one outside, wherever a link leads now."""
        fetcher, file = make(local_files_root=root), root / "sub/b c.png"
        known = fetcher.fetch_if_changed("/data/local-files/?d=sub/b c.png", known=None).validators
        file.rename(root.parent / "moved")
        file.symlink_to(root.parent / "moved")
        with pytest.raises(FetchError, match="the local file"):
            fetcher.fetch_if_changed("/data/local-files/?d=sub/b c.png", known=known)

    def test_large_files_are_refused(self, root, make):
        with pytest.raises(FetchError, match="more than 5 bytes"):
            make(local_files_root=root, max_bytes=5).fetch("/data/local-files/?d=sub/b c.png")
