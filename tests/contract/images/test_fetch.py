import base64
import json
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import formatdate

import pytest

import contract.images.connections
import contract.images.local
from bench.hostile import pictures
from bench.hostile.references import ELSEWHERE, LOCAL_FILES, THIS_MACHINE
from bench.hostile.site import write_files
from bench.hosts import Handler, Host, Request, endless, host, raw, reply, silence, trickle
from contract.errors import ConfigError, FetchError, TemporaryFetchError
from contract.images.addresses import is_public, resolve_addresses
from contract.images.download import HttpUrl, Validators
from contract.images.fetch import Fetcher, FetchSettings
from server.service import fetch_settings
from server.settings import Settings
from trainer.labels.dataset import open_fetcher
from trainer.settings import Environment

IMAGE = b"the bytes of an image"
LEGACY = "0123456789abcdef0123456789abcdef01234567"
PUBLIC = "93.184.216.34"
UPLOAD = "/data/upload/1/a.png"
LONG_AGO = "Mon, 01 Jan 2024 00:00:00 GMT"


def jwt(kind, serial=0):
    """A JSON web token that says it is of this kind."""
    parts = ({"alg": "HS256"}, {"token_type": kind, "jti": serial})
    head, claims = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return f"{head}.{claims}.c2lnbmF0dXJl"


def tokens(host):
    """Which token each request brought."""
    return [request.headers.get("Authorization") for request in host.requests]


def unknown(name, port):
    raise socket.gaierror(-2, "Name or service not known")


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def home():
    with host() as each:
        yield each


@pytest.fixture
def elsewhere():
    with host() as each:
        yield each


@pytest.fixture
def make():
    """Makes fetchers that are closed when the test ends."""
    made = []

    def fetcher(*, resolve=resolve_addresses, clock=time.monotonic, **settings):
        made.append(Fetcher(FetchSettings(**settings), resolve=resolve, clock=clock))
        return made[-1]

    yield fetcher
    for each in made:
        each.close()


def renewing(home: Host, *, honours: int = 1) -> None:
    """Make the host give out access tokens, each honoured for so many images."""
    left: dict[str, int] = {}

    def refresh(handler: Handler, request: Request) -> None:
        if json.loads(request.body) != {"refresh": jwt("refresh")}:
            return reply(b"{}", status=401)(handler, request)
        access = jwt("access", len(left))
        left[access] = honours
        return reply(json.dumps({"access": access}).encode())(handler, request)

    def image(handler: Handler, request: Request) -> None:
        kind, _, token = request.headers.get("Authorization", "none ").partition(" ")
        if kind != "Bearer" or left.get(token, 0) <= 0:
            return reply(b"", status=401)(handler, request)
        left[token] -= 1
        return reply(IMAGE)(handler, request)

    home.answers["/api/token/refresh/"] = refresh
    home.answers["/data/upload/1/a.png"] = image


class TestReferences:
    @pytest.mark.parametrize(
        ("prefix", "reference"), [("", UPLOAD), ("/studio", UPLOAD), ("/studio", f"/studio{UPLOAD}")]
    )
    def test_an_upload_is_fetched_from_label_studio(self, home, make, prefix, reference):
        """With the legacy token as it is, and below its path prefix, whether or not the reference has that."""
        home.serve(f"{prefix}{UPLOAD}", IMAGE)
        assert make(label_studio_url=f"{home.url}{prefix}/", api_token=LEGACY).fetch(reference) == IMAGE
        assert tokens(home) == [f"Token {LEGACY}"]

    @pytest.mark.parametrize("uri", ["s3://bucket/a b.png", "gs://bucket/a.png", "azure-blob://box/ä.png"])
    def test_storage_objects_are_resolved_by_label_studio(self, home, elsewhere, make, uri):
        """The resolve endpoint of the task gets the URI in URL-safe base64; its redirect is followed without token."""
        elsewhere.serve("/signed", IMAGE)
        home.serve("/tasks/7/resolve/", status=303, location=f"{elsewhere.url}/signed?signature=secret")
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, allowed_origins=(elsewhere.url,))
        assert fetcher.fetch(uri, task_id=7, project_id=1) == IMAGE
        query = home.requests[0].path.partition("?fileuri=")[2].replace("%3D", "=")
        assert base64.urlsafe_b64decode(query).decode() == uri
        assert tokens(home) + tokens(elsewhere) == [f"Token {LEGACY}", None]

    def test_storage_objects_without_a_task_are_resolved_for_the_project(self, home, make):
        """The project's resolve endpoint stands in for the task's."""
        home.serve("/projects/3/resolve/", IMAGE)
        assert make(label_studio_url=home.url).fetch("s3://bucket/a.png", project_id=3) == IMAGE

    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            ("data:image/png;base64,a", "not valid base64"),
            ("data:image/png;base64,!!!!", "not valid base64"),
            ("data:image/png;base64,", "holds no data"),
            ("data:", "holds no data"),
            ("data:;base64,aGVsbG8=", "more than 4 bytes"),
            ("data:,%41%42%43%44", "use base64"),
        ],
    )
    def test_data_uris_that_are_broken_or_too_large_are_refused(self, make, monkeypatch, uri, message):
        """The limit holds inside a task, too; ten million escapes would take seconds and gigabytes to undo."""
        monkeypatch.setattr(contract.images.local, "_MAX_ESCAPES", 3)
        assert make(max_bytes=4).fetch("data:,%41%42%43") == b"ABC"
        with pytest.raises(FetchError, match=rf"data:\.\.\. .*{message}"):
            make(max_bytes=4).fetch(uri)

    @pytest.mark.parametrize("start", ["http://127.0.0.1:1/", "s3://bucket/", "/data/upload/", "/data/local-files/?d="])
    def test_long_references_are_refused_unread(self, make, tmp_path, start):
        """Megabytes would be read character by character, and again for each message; none is shown."""
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
        """Only what Label Studio writes into tasks is fetched, and no task can make us call its API with our token."""
        with pytest.raises(FetchError, match=message) as caught:
            make(label_studio_url=home.url, api_token=LEGACY).fetch(reference)
        assert not home.requests
        assert not caught.value.later

    def test_paths_of_label_studio_need_its_address(self, make):
        """The message names the settings to set."""
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
        """The path comes from the query, with its escapes undone, also in a full URL of Label Studio."""
        fetcher = make(local_files_root=root, label_studio_url="http://127.0.0.1:9/studio")
        for prefix in ("", "/studio", "http://127.0.0.1:9/studio"):
            reference = f"{prefix}/data/local-files/?d=sub%2Fb%20c.png"
            assert fetcher.fetch(reference) == IMAGE
            assert not fetcher.is_remote(reference)

    @pytest.mark.parametrize("name", LOCAL_FILES.values(), ids=list(LOCAL_FILES))
    def test_nothing_else_is_read(self, tmp_path, make, name):
        """No way out of the root, no folder, no pipe that would block its reader; a loop of links is its image's."""
        fetcher = make(local_files_root=write_files(tmp_path, "secret"))
        with pytest.raises(FetchError, match="local file"):
            fetcher.fetch(f"/data/local-files/?d={name}")
        assert fetcher.fetch("/data/local-files/?d=sub/good.png") == pictures.plain()

    @pytest.fixture
    def later(self, monkeypatch):
        """Ten seconds have gone by since files were written."""
        monkeypatch.setattr("contract.images.local.time.time_ns", lambda: int((time.time() + 10) * 1e9))

    @pytest.mark.usefixtures("later")
    def test_an_unchanged_file_is_not_read_again(self, root, make):
        """The file system says whether it is: also of one that was given its size and its date back."""
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
        """Some file systems count seconds, and this one has just been written."""
        os.utime(root / "sub/b c.png", None if date is None else (date, date))
        fetcher = make(local_files_root=root)
        known = fetcher.fetch_if_changed("/data/local-files/?d=sub/b c.png", known=None).validators
        assert not known.can_ask
        assert fetcher.fetch_if_changed("/data/local-files/?d=sub/b c.png", known=known).data == IMAGE

    @pytest.mark.usefixtures("later")
    def test_of_another_file_nobody_learns_whether_it_changed(self, root, make):
        """What is known of a file inside the root does not open one outside, whatever a link now leads to."""
        fetcher, file = make(local_files_root=root), root / "sub/b c.png"
        known = fetcher.fetch_if_changed("/data/local-files/?d=sub/b c.png", known=None).validators
        file.rename(root.parent / "moved")
        file.symlink_to(root.parent / "moved")
        with pytest.raises(FetchError, match="the local file"):
            fetcher.fetch_if_changed("/data/local-files/?d=sub/b c.png", known=known)

    def test_large_files_are_refused(self, root, make):
        """The size limit holds for files as for hosts."""
        with pytest.raises(FetchError, match="more than 5 bytes"):
            make(local_files_root=root, max_bytes=5).fetch("/data/local-files/?d=sub/b c.png")

    def test_without_a_root_label_studio_is_asked(self, home, make):
        """Label Studio serves its local files to whoever brings a token."""
        home.serve("/data/local-files/", IMAGE)
        fetcher = make(label_studio_url=home.url, api_token=LEGACY)
        assert fetcher.fetch("/data/local-files/?d=sub/b.png") == IMAGE
        assert home.requests[0].path == "/data/local-files/?d=sub/b.png"
        assert home.requests[0].headers["Authorization"] == f"Token {LEGACY}"


class TestPublicAddress:
    """Label Studio is asked at one address, and named by another in references."""

    PUBLIC = "https://labels.example.org/studio"

    @pytest.fixture
    def says(self, home):
        """Has Label Studio say what LABEL_STUDIO_HOST is, as 1.23 does."""

        def serve(url):
            api = {"openapi": "3.0.3", "servers": [{"url": url, "description": "Label Studio"}], "paths": {}}
            home.serve("/docs/api/schema/json/", json.dumps(api).encode())

        home.serve("/data/upload/1/a.png", IMAGE)
        home.serve("/data/local-files/", IMAGE)
        return serve

    def images(self, home):
        """What was asked of Label Studio's images, and with which token."""
        asked = [request for request in home.requests if request.path != "/docs/api/schema/json/"]
        return [(request.path, request.headers.get("Authorization")) for request in asked]

    @pytest.mark.parametrize(
        "reference",
        [
            "{public}/data/upload/1/a.png",
            "{public}/data/local-files/?d=sub/b%20c.png",
            "HTTPS://Labels.Example.org:443/studio/data/upload/1/a.png",
            "//labels.example.org/studio/data/upload/1/a.png",
            "/studio/data/upload/1/a.png",
            "/studio/data/local-files/?d=sub/b%20c.png",
        ],
    )
    @pytest.mark.parametrize("told_by", ["setting", "label studio"])
    def test_label_studio_is_asked_at_its_address_for_what_is_at_its_public_one(
        self, home, says, make, reference, told_by
    ):
        """With the token, without the prefix, whether the public address was set or learnt from Label Studio."""
        says(self.PUBLIC if told_by == "label studio" else "")
        public = {"label_studio_public_url": f"{self.PUBLIC}/"} if told_by == "setting" else {}
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, resolve=unknown, **public)
        assert fetcher.fetch(reference.format(public=self.PUBLIC)) == IMAGE
        own = "/data/upload/1/a.png" if "upload" in reference else "/data/local-files/?d=sub/b%20c.png"
        assert self.images(home) == [(own, f"Token {LEGACY}")]
        assert fetcher.source(reference.format(public=self.PUBLIC)) == home.url + own

    @pytest.mark.parametrize(
        "reference",
        [
            "https://labels.example.org/data/upload/1/a.png",
            "https://labels.example.org/other/data/upload/1/a.png",
            "http://labels.example.org/studio/data/upload/1/a.png",
            "https://labels.example.org:8443/studio/data/upload/1/a.png",
            "https://evil.example.org/studio/data/upload/1/a.png",
            "https://labels.example.org@evil.example.org/studio/data/upload/1/a.png",
            "https://labels.example.org.evil.example.org/studio/data/upload/1/a.png",
            "http://localhost:8080/data/upload/1/a.png",
            "https://labels.example.org/studio/api/projects",
            "https://labels.example.org/studio/data/upload/../../api/projects",
            "https://labels.example.org/studio/data/upload/%252e%252e/%252e%252e/api/projects",
        ],
    )
    def test_nothing_else_is_at_its_public_address(self, home, says, make, reference):
        """Another host, port, scheme or prefix is somebody else, who may show people another image."""
        says(self.PUBLIC)
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, resolve=unknown)
        with pytest.raises(FetchError, match="cannot be reached"):
            fetcher.fetch(reference)
        assert self.images(home) == []

    @pytest.mark.parametrize("path", ["/data/upload/1/a.png", "/data/local-files/?d=sub/b.png"])
    def test_a_foreign_host_is_asked_for_its_own_image(self, home, elsewhere, says, make, monkeypatch, tmp_path, path):
        """Even if a file of that name lies below the root of local files, people see that of the host."""
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "b.png").write_bytes(b"the file that nobody sees")
        says("")
        elsewhere.serve(path.partition("?")[0], b"what people see")
        connect = socket.create_connection
        monkeypatch.setattr(
            contract.images.connections,
            "create_connection",
            lambda _, timeout, **__: connect(("127.0.0.1", elsewhere.port), timeout),
        )
        fetcher = make(
            label_studio_url=home.url, api_token=LEGACY, local_files_root=tmp_path, resolve=lambda *_: [PUBLIC]
        )
        assert fetcher.fetch(f"http://images.example.org{path}") == b"what people see"
        assert "Authorization" not in elsewhere.requests[0].headers
        assert self.images(home) == []

    @pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1:1", "[::1]:8080", "studio.localhost"])
    @pytest.mark.parametrize("start", ["http://{}", "https://{}", "http://{}/any/prefix"])
    def test_localhost_is_label_studio_where_it_does_not_say(self, home, says, make, host, start):
        """As in compose.yaml: who wrote such a reference saw Label Studio there, and nobody else can have."""
        says("")
        fetcher = make(label_studio_url=home.url, api_token=LEGACY)
        assert fetcher.fetch(start.format(host) + "/data/upload/1/a.png") == IMAGE
        assert self.images(home) == [("/data/upload/1/a.png", f"Token {LEGACY}")]

    def test_an_allowed_origin_is_itself(self, home, elsewhere, says, make):
        """Whoever allows an origin of this machine says that images lie there."""
        says("")
        elsewhere.serve("/data/upload/1/a.png", b"what people see")
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, allowed_origins=(elsewhere.url,))
        assert fetcher.fetch(f"{elsewhere.url}/data/upload/1/a.png") == b"what people see"
        assert "Authorization" not in elsewhere.requests[0].headers

    @pytest.mark.parametrize("told", [True, False])
    def test_local_files_at_the_public_address_are_read_from_disk(self, make, tmp_path, told):
        """Below the root, with Label Studio down or not set at all; nobody is asked."""
        (tmp_path / "b c.png").write_bytes(IMAGE)
        url = self.PUBLIC if told else "http://localhost:8080"
        settings = {"label_studio_public_url": self.PUBLIC} if told else {"label_studio_url": "http://127.0.0.1:1"}
        fetcher = make(local_files_root=tmp_path, **settings)
        assert fetcher.fetch(f"{url}/data/local-files/?d=b%20c.png") == IMAGE
        assert not fetcher.is_remote(f"{url}/data/local-files/?d=b%20c.png")
        with pytest.raises(FetchError, match="local file"):
            fetcher.fetch(f"{url}/data/local-files/?d=../b%20c.png")

    @pytest.mark.parametrize("program", ["server", "trainer"])
    def test_both_programs_are_told_by_one_variable(self, tmp_path, program):
        """What the environment says reaches what fetches images."""
        (tmp_path / "a.png").write_bytes(IMAGE)
        environ = {"LABELNEXT_LABEL_STUDIO_PUBLIC_URL": self.PUBLIC, "LABELNEXT_LOCAL_FILES_ROOT": str(tmp_path)}
        with (
            Fetcher(fetch_settings(Settings.read(environ)))
            if program == "server"
            else open_fetcher(Environment.read(environ))
        ) as fetcher:
            assert fetcher.fetch(f"{self.PUBLIC}/data/local-files/?d=a.png") == IMAGE

    def test_label_studio_may_lead_to_itself_by_its_public_name(self, home, says, make):
        """Its redirect is followed at its address, with the token."""
        says(self.PUBLIC)
        home.serve("/tasks/7/resolve/", status=302, location=f"{self.PUBLIC}/data/upload/1/a.png")
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, resolve=unknown)
        assert fetcher.fetch("s3://bucket/a.png", task_id=7) == IMAGE
        assert [token for _, token in self.images(home)] == [f"Token {LEGACY}"] * 2

    def test_a_stranger_that_leads_to_the_public_address_gets_nothing(self, home, elsewhere, says, make):
        """The redirect is judged as if the task had named the address, and the token has ended."""
        says(self.PUBLIC)
        elsewhere.serve("/a.png", status=302, location=f"{home.url}/data/upload/1/a.png")
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, allowed_origins=(elsewhere.url,))
        fetcher.fetch(f"{elsewhere.url}/a.png")
        assert self.images(home) == [("/data/upload/1/a.png", None)]

    def test_label_studio_is_asked_for_its_public_address_now_and_then(self, home, says, make):
        """Once in ten minutes if it says one, once in a minute if not, and never with the token."""
        clock = Clock()
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, clock=clock, resolve=unknown)
        reference = f"{self.PUBLIC}/data/upload/1/a.png"
        outcomes = []
        new = "https://new.example.org"
        for seconds, said in ((0, ""), (59, self.PUBLIC), (2, self.PUBLIC), (598, new), (3, new)):
            clock.now += seconds
            says(said)
            with suppress(FetchError):
                outcomes.append(fetcher.fetch(reference) and seconds)
        assert outcomes == [2, 598]
        asked = home.asked("/docs/api/schema/json/")
        assert len(asked) == 3
        assert not [request for request in asked if "Authorization" in request.headers]

    def test_what_label_studio_last_said_holds_while_it_is_down(self, home, says, make):
        """An outage does not change whose the references are."""
        clock = Clock()
        says(self.PUBLIC)
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, clock=clock, resolve=unknown)
        reference = f"{self.PUBLIC}/data/upload/1/a.png"
        assert fetcher.fetch(reference) == IMAGE
        home.serve("/docs/api/schema/json/", b"", status=503)
        clock.now += 700
        assert fetcher.fetch(reference) == IMAGE

    def test_usual_references_do_not_ask_for_it(self, home, says, make):
        """Paths, Label Studio's own address and other hosts are what they are."""
        says(self.PUBLIC)
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, resolve=unknown)
        fetcher.fetch("/data/upload/1/a.png")
        fetcher.fetch(f"{home.url}/data/upload/1/a.png")
        with suppress(FetchError):
            fetcher.fetch("http://images.example.org/a.png")
        assert not home.asked("/docs/api/schema/json/")

    @pytest.mark.parametrize(
        "answer", [b"", b"[]", b"{", b'{"servers": [{"url": 7}]}', b'{"servers": [{"url": "/studio"}]}']
    )
    def test_a_description_that_names_no_address_is_none(self, home, says, make, answer):
        """Label Studio may be older, or set up in another way."""
        home.serve("/docs/api/schema/json/", answer)
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, resolve=unknown)
        assert fetcher.fetch("/studio/data/upload/1/a.png") == IMAGE
        with pytest.raises(FetchError, match="cannot be reached"):
            fetcher.fetch(f"{self.PUBLIC}/data/upload/1/a.png")

    @pytest.mark.parametrize(("public", "scheme"), [("https://labels.example.org", "https"), (None, "http")])
    def test_what_has_no_scheme_has_that_of_label_studios_page(self, home, says, make, public, scheme):
        """As in the browser that shows it."""
        says("")
        fetcher = make(label_studio_url=home.url, label_studio_public_url=public)
        assert fetcher.source("//images.example.org/a.png") == f"{scheme}://images.example.org/a.png"


class TestToken:
    def test_a_personal_access_token_is_exchanged_once(self, home, make):
        """Many threads share one access token."""
        renewing(home, honours=100)
        fetcher = make(label_studio_url=home.url, api_token=jwt("refresh"))
        with ThreadPoolExecutor(8) as threads:
            bodies = list(threads.map(lambda _: fetcher.fetch(UPLOAD), range(40)))
        assert bodies == [IMAGE] * 40
        assert len(home.asked("/api/token/refresh/")) == 1

    def test_a_refused_access_token_is_renewed_once(self, home, make):
        """After 401 the image is asked for again with a new access token; a second refusal is final."""
        renewing(home, honours=1)
        fetcher = make(label_studio_url=home.url, api_token=jwt("refresh"))
        assert [fetcher.fetch(UPLOAD) for _ in range(3)] == [IMAGE] * 3
        assert len(home.asked("/api/token/refresh/")) == 3
        renewing(home, honours=0)
        home.requests.clear()
        with pytest.raises(FetchError, match="answered 401"):
            fetcher.fetch(UPLOAD)
        assert len(home.asked(UPLOAD)) == 2

    def test_an_access_token_is_renewed_before_it_ends(self, home, make):
        """Label Studio honours one for 300 s; it is not used to the last second."""
        renewing(home, honours=100)
        clock = Clock()
        fetcher = make(label_studio_url=home.url, api_token=jwt("refresh"), clock=clock)
        fetcher.fetch(UPLOAD)
        clock.now += 299
        fetcher.fetch(UPLOAD)
        assert len(home.asked("/api/token/refresh/")) == len(home.asked(UPLOAD)) == 2

    @pytest.mark.parametrize(("status", "later"), [(503, True), (401, False)])
    def test_a_personal_access_token_that_is_refused_is_named(self, home, make, status, later):
        """By its setting, without the token. Label Studio gives out none while it starts; one refused stays refused."""
        home.serve("/api/token/refresh/", b'{"detail": "Token is blacklisted"}', status=status)
        with pytest.raises(FetchError, match=r"needs a token.*LABELNEXT_LABEL_STUDIO_TOKEN") as caught:
            make(label_studio_url=home.url, api_token=jwt("refresh")).fetch(UPLOAD)
        assert jwt("refresh") not in str(caught.value)
        assert caught.value.later is later
        assert not home.asked(UPLOAD)

    def test_an_access_token_is_sent_as_it_is(self, home, make):
        """A token that is no refresh token cannot be exchanged."""
        home.serve(UPLOAD, IMAGE)
        make(label_studio_url=home.url, api_token=jwt("access")).fetch(UPLOAD)
        assert tokens(home) == [f"Bearer {jwt('access')}"]

    def test_another_origin_gets_no_token(self, home, elsewhere, make):
        """Another port on the same host is another origin, allowed or not."""
        elsewhere.serve(UPLOAD, IMAGE)
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, allowed_origins=(elsewhere.url,))
        assert fetcher.fetch(elsewhere.url + UPLOAD) == IMAGE
        assert tokens(elsewhere) == [None]

    @pytest.mark.parametrize("path", ["/api/projects", "/data/upload/%2e%2e/%2e%2e/api/projects", "/static/a.png"])
    def test_other_paths_of_label_studio_get_no_token(self, home, make, path):
        """A task that names Label Studio's API by a full URL asks it as a stranger."""
        home.serve(path, IMAGE)
        with suppress(FetchError):
            make(label_studio_url=home.url, api_token=LEGACY).fetch(home.url + path)
        assert tokens(home) == [None]

    def test_a_redirect_off_label_studio_ends_the_token(self, home, elsewhere, make):
        """It is not sent again even if the other host redirects back."""
        home.serve(UPLOAD, status=302, location=f"{elsewhere.url}/there")
        elsewhere.serve("/there", status=302, location=f"{home.url}/data/upload/1/b.png")
        home.serve("/data/upload/1/b.png", IMAGE)
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, allowed_origins=(elsewhere.url,))
        assert fetcher.fetch(UPLOAD) == IMAGE
        assert tokens(home) + tokens(elsewhere) == [f"Token {LEGACY}", None, None]

    def test_a_redirect_within_label_studio_keeps_the_token(self, home, make):
        """Label Studio redirects its own uploads when they move."""
        home.serve(UPLOAD, status=301, location="/storage-data/uploaded/?filepath=upload/1/a.png")
        home.serve("/storage-data/uploaded/", IMAGE)
        assert make(label_studio_url=home.url, api_token=LEGACY).fetch(UPLOAD) == IMAGE
        assert tokens(home) == [f"Token {LEGACY}"] * 2

    def test_the_settings_do_not_show_the_token(self):
        """Settings end up in logs."""
        assert LEGACY not in repr(FetchSettings(api_token=LEGACY))

    @pytest.mark.parametrize("token", ["two words", "line\nX-Injected: 1", "schlüssel"])
    def test_what_cannot_be_a_token_is_refused_at_once(self, make, token):
        """A header is made of it, so it may not hold whatever a file or a shell put there."""
        with pytest.raises(ConfigError, match="LABELNEXT_LABEL_STUDIO_TOKEN") as caught:
            make(api_token=token)
        assert token not in str(caught.value)


def dated(modified, *, etag=None, **headers):
    """An answer with the image and its validators, or 304 to who has them."""

    def answer(handler: Handler, request: Request) -> None:
        given = {"ETag": etag, "Last-Modified": modified}
        same = (etag and request.headers.get("If-None-Match") == etag) or (
            modified and not etag and request.headers.get("If-Modified-Since") == modified
        )
        handler.send_response(304 if same else 200)
        for name, value in {name: value for name, value in given.items() if value}.items():
            handler.send_header(name, value)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if not same:
            handler.send_header("Content-Length", str(len(IMAGE)))
        handler.end_headers()
        if not same:
            handler.wfile.write(IMAGE)

    return answer


class TestRevalidation:
    @pytest.mark.parametrize(
        ("modified", "etag"), [(LONG_AGO, None), (None, '"tag"'), (LONG_AGO, 'W/"tag"')], ids=["date", "tag", "both"]
    )
    def test_an_unchanged_file_is_not_sent_again(self, home, make, modified, etag):
        """Who shows what it got beside the file gets 304, over the same connection."""
        home.answers[UPLOAD] = dated(modified, etag=etag)
        fetcher = make(label_studio_url=home.url, api_token=LEGACY)
        first = fetcher.fetch_if_changed(UPLOAD, known=None)
        assert (first.data, first.unchanged) == (IMAGE, False)
        again = fetcher.fetch_if_changed(UPLOAD, known=first.validators)
        assert (again.unchanged, again.validators) == (True, first.validators)
        assert fetcher.fetch_if_changed(UPLOAD, known=again.validators).unchanged
        assert "If-None-Match" not in home.requests[0].headers
        assert home.requests[1].headers["Authorization"] == f"Token {LEGACY}"
        assert len({request.connection for request in home.requests}) == 1

    def test_a_changed_file_is_sent_with_its_new_validators(self, home, make):
        """The next question is asked with these."""
        home.answers[UPLOAD] = dated(None, etag='"old"')
        fetcher = make(label_studio_url=home.url)
        known = fetcher.fetch_if_changed(UPLOAD, known=None).validators
        home.answers[UPLOAD] = dated(None, etag='"new"')
        fetched = fetcher.fetch_if_changed(UPLOAD, known=known)
        assert (fetched.data, fetched.unchanged, fetched.validators.etag) == (IMAGE, False, '"new"')

    def test_only_who_gave_validators_is_asked_with_them(self, home, elsewhere, make):
        """Behind a redirect, the host that has the file; what redirects to it might mean something else by 304."""
        home.serve("/tasks/7/resolve/", status=303, location=f"{elsewhere.url}/signed?signature=1")
        elsewhere.answers["/signed"] = dated(None, etag='"tag"')
        fetcher = make(label_studio_url=home.url, allowed_origins=(elsewhere.url,))
        known = fetcher.fetch_if_changed("s3://bucket/a.png", known=None, task_id=7).validators
        home.serve("/tasks/7/resolve/", status=303, location=f"{elsewhere.url}/signed?signature=2")
        assert fetcher.fetch_if_changed("s3://bucket/a.png", known=known, task_id=7).unchanged
        assert "If-None-Match" not in home.requests[1].headers
        assert elsewhere.requests[1].headers["If-None-Match"] == '"tag"'

    @pytest.mark.parametrize(("modified", "etag"), [(LONG_AGO, None), (None, '"tag"')], ids=["date", "tag"])
    @pytest.mark.parametrize("moved", ["to another host", "to another file"])
    def test_what_has_moved_is_not_asked_with_them(self, home, elsewhere, make, modified, etag, moved):
        """A reference that now leads to another host, or to an older file, would be told that nothing changed."""
        fetcher = make(label_studio_url=home.url, allowed_origins=(elsewhere.url,))
        same, known = "/data/upload/1/b.png", None
        for place, path in (
            ((home, same), (elsewhere, same))
            if moved == "to another host"
            else ((elsewhere, "/new.png"), (elsewhere, "/old.png"))
        ):
            place.answers[path] = dated(modified, etag=etag)
            home.serve(UPLOAD, status=302, location=place.url + path)
            fetched = fetcher.fetch_if_changed(UPLOAD, known=known)
            assert (fetched.data, fetched.unchanged) == (IMAGE, False)
            known = fetched.validators

    def test_304_without_a_question_is_an_error(self, home, make):
        """There is no file to go on with."""
        home.serve(UPLOAD, status=304)
        with pytest.raises(FetchError, match="answered 304, expected 200"):
            make(label_studio_url=home.url).fetch(UPLOAD)

    def test_a_renewed_token_does_not_cost_the_file(self, home, make):
        """The question is asked again with it."""
        access = [0]

        def refresh(handler, request):
            access[0] += 1
            reply(json.dumps({"access": jwt("access", access[0])}).encode())(handler, request)

        def image(handler, request):
            honoured = request.headers["Authorization"] == f"Bearer {jwt('access', 2)}"
            (dated(None, etag='"tag"') if honoured else reply(b"", status=401))(handler, request)

        home.answers |= {"/api/token/refresh/": refresh, UPLOAD: image}
        fetcher = make(label_studio_url=home.url, api_token=jwt("refresh"))
        known = Validators(f"http://127.0.0.1:{home.port}/data/upload/1/a.png", '"tag"', None)
        assert fetcher.fetch_if_changed(UPLOAD, known=known).unchanged
        assert len(home.asked(UPLOAD)) == 2

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"etag": "no quotes"},
            {"etag": '"tag"\t"other"'},
            {"etag": '"' + "x" * 1000 + '"'},
            {"last_modified": "yesterday"},
            {"last_modified": "Mon, 01 Jan 2024 00:00:00 GMT\x01"},
        ],
        ids=["none", "unquoted", "two", "long", "no-date", "control"],
    )
    def test_what_cannot_be_asked_with_is_not_kept(self, home, make, headers):
        """Nor where it came from; that it came is all that can be remembered."""
        home.serve(UPLOAD, IMAGE, **headers)
        fetcher = make(label_studio_url=home.url)
        fetched = fetcher.fetch_if_changed(UPLOAD, known=None)
        assert (fetched.data, fetched.validators) == (IMAGE, Validators("", None, None))
        assert not fetched.validators.can_ask
        assert fetcher.fetch_if_changed(UPLOAD, known=fetched.validators).data == IMAGE

    def test_what_a_host_wants_forgotten_is(self, home, make):
        """However it could be asked."""
        home.serve(UPLOAD, IMAGE, etag='"tag"', cache_control="private, No-Store")
        fetched = make(label_studio_url=home.url).fetch_if_changed(UPLOAD, known=None)
        assert (fetched.data, fetched.validators) == (IMAGE, None)

    def test_a_date_within_whose_second_the_file_may_change_is_not_kept(self, home, make):
        """Dates count seconds, and the file that comes next may have the same one."""
        fetcher = make(label_studio_url=home.url)
        kept = []
        for age_s in (0, 10):
            home.serve(UPLOAD, IMAGE, last_modified=formatdate(time.time() - age_s, usegmt=True))
            kept.append(fetcher.fetch_if_changed(UPLOAD, known=None).validators.can_ask)
        assert kept == [False, True]

    def test_sources_are_named_by_what_is_asked_first(self, make, tmp_path):
        """Storage objects have one for each task, local files one each, and what lies in the reference has none."""
        fetcher = make(label_studio_url="http://studio.test/ls", local_files_root=tmp_path)
        assert fetcher.source("http://host/a.png?x=1") == "http://host/a.png?x=1"
        assert fetcher.source(UPLOAD) == "http://studio.test/ls/data/upload/1/a.png"
        one, other = (fetcher.source("s3://b/a.png", task_id=task) for task in (1, 2))
        assert one != other
        files = [fetcher.source(f"/data/local-files/?d={name}") for name in ("a.png", "b.png", "a%2Epng")]
        assert files[0] == files[2] != files[1]
        assert fetcher.source("data:,x") is None


class TestLimits:
    def test_connections_are_kept_alive(self, home, make):
        """Two thousand tasks from one host cost one connection a thread, redirects included."""
        home.serve(UPLOAD, status=302, location="/data/upload/1/b.png")
        home.serve("/data/upload/1/b.png", IMAGE)
        fetcher = make(label_studio_url=home.url)
        for _ in range(5):
            fetcher.fetch(UPLOAD)
        assert len(home.requests) == 10
        assert len({request.connection for request in home.requests}) == 1

    def test_a_connection_that_the_host_closed_is_opened_again(self, home, make):
        """A host that drops a kept connection without saying so costs a second attempt, not the image."""
        home.serve(UPLOAD, IMAGE)
        fetcher = make(label_studio_url=home.url)

        def drop_once(handler, request):
            home.serve(UPLOAD, IMAGE)
            handler.close_connection = True

        home.answers[UPLOAD] = drop_once
        assert fetcher.fetch(UPLOAD) == IMAGE
        assert len(home.requests) == 2

    @pytest.mark.parametrize(("length", "fits"), [("1000", True), (str(10**12), False)])
    def test_an_announced_size_over_the_limit_is_not_read(self, home, make, length, fits):
        """Content-Length decides before the first byte; the limit itself is allowed."""
        home.serve(UPLOAD, bytes(1000), content_length=length)
        fetcher = make(label_studio_url=home.url, max_bytes=1000)
        if fits:
            assert len(fetcher.fetch(UPLOAD)) == 1000
        else:
            with pytest.raises(FetchError, match="more than 1000 bytes"):
                fetcher.fetch(UPLOAD)

    def test_an_endless_body_is_cut_at_the_limit(self, home, make):
        """A body without a length is counted while it comes."""
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        home.answers[UPLOAD] = endless(chunked, b"1000\r\n" + bytes(4096) + b"\r\n")
        with pytest.raises(FetchError, match="more than 100000 bytes"):
            make(label_studio_url=home.url, max_bytes=100_000).fetch(UPLOAD)

    @pytest.mark.parametrize(
        "sent",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        ],
    )
    def test_a_body_cut_short_is_asked_for_again_later(self, home, make, sent):
        """Fewer bytes than announced, or none before the connection ends: so does a host that is being stopped."""
        home.answers[UPLOAD] = raw(sent)
        with pytest.raises(TemporaryFetchError, match="broke off"):
            make(label_studio_url=home.url).fetch(UPLOAD)

    def test_an_image_of_no_bytes_is_none(self, home, make):
        """Where the host says that it is empty."""
        home.answers[UPLOAD] = reply(b"")
        assert make(label_studio_url=home.url).fetch(UPLOAD) == b""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "answer",
        [
            silence(),
            silence(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf"),
            *(
                trickle(b"HTTP/1.1 200 OK\r\n" + head, every_s=0.02)
                for head in (
                    b"X-Slow: ",
                    b"Content-Length: 1000000\r\n\r\n",
                    b"Connection: close\r\n\r\n",
                    b"Transfer-Encoding: chunked\r\n\r\n",
                )
            ),
        ],
        ids=["silent", "silent-in-body", "head", "body", "body-of-unknown-length", "chunk-size"],
    )
    def test_a_silent_or_trickling_host_is_given_up(self, home, make, answer):
        """A byte now and then resets a socket's time-out, but neither the head's nor the image's."""
        home.answers[UPLOAD] = answer
        with pytest.raises(TemporaryFetchError, match="took too long to answer"):
            make(label_studio_url=home.url, read_timeout_s=0.2, total_timeout_s=0.4).fetch(UPLOAD)
        assert len(home.requests) == 1
        assert not home.over.is_set()

    @pytest.mark.parametrize(("left_s", "asked"), [(-1, 0), (0.2, 1)])
    def test_the_deadline_shortens_the_time_outs(self, home, make, left_s, asked):
        """A host may be silent no longer than the caller can wait, and none is asked when the time is over."""
        home.answers[UPLOAD] = lambda *_: home.over.wait(20)
        with pytest.raises(TemporaryFetchError, match=r"took too long|in time"):
            make(label_studio_url=home.url).fetch(UPLOAD, deadline=time.monotonic() + left_s)
        assert len(home.requests) == asked
        assert not home.over.is_set()

    def test_a_thread_waits_for_anothers_token_only_until_its_deadline(self, home, make):
        """One slow exchange does not hold up every image for longer than that image has."""
        exchanging = threading.Event()

        def slow(handler, request):
            exchanging.set()
            home.over.wait(20)
            handler.close_connection = True

        home.answers["/api/token/refresh/"] = slow
        fetcher = make(label_studio_url=home.url, api_token=jwt("refresh"), read_timeout_s=1.0)
        with ThreadPoolExecutor(1) as other:
            first = other.submit(fetcher.fetch, UPLOAD)
            assert exchanging.wait(10)
            with pytest.raises(FetchError, match="slow to give out an access token"):
                fetcher.fetch(UPLOAD, deadline=time.monotonic() + 0.1)
            home.over.set()
            assert isinstance(first.exception(10), FetchError)

    def test_compressed_bodies_are_not_unpacked(self, home, make):
        """Nothing is asked for or unpacked, so a small answer stays small."""
        home.serve(UPLOAD, IMAGE, content_encoding="gzip")
        assert make(label_studio_url=home.url).fetch(UPLOAD) == IMAGE
        assert home.requests[0].headers["Accept-Encoding"] == "identity"

    def test_proxies_of_the_environment_are_not_used(self, home, elsewhere, make, monkeypatch):
        """A proxy would look names up itself, past the check of the address."""
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, elsewhere.url)
        home.serve(UPLOAD, IMAGE)
        assert make(label_studio_url=home.url).fetch(UPLOAD) == IMAGE
        assert not elsewhere.requests


class TestAddresses:
    @pytest.mark.parametrize(
        "name", [*(each for each in THIS_MACHINE.values() if each != "localhost."), *ELSEWHERE.values()]
    )
    def test_addresses_off_the_public_internet_are_not_asked(self, make, monkeypatch, name):
        """However an address is written, no connection to a private, local or multicast one is opened."""
        monkeypatch.setattr(contract.images.connections, "create_connection", lambda *_, **__: pytest.fail("connected"))
        with pytest.raises(FetchError, match="LABELNEXT_ALLOWED_ORIGINS"):
            make(label_studio_url="http://10.0.0.9:8080").fetch(f"http://{name}/a.png")

    @pytest.mark.parametrize(
        "address", [PUBLIC, "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34", "64:ff9b::93.184.216.34"]
    )
    def test_public_addresses_are_public(self, address):
        """The check lets the internet through."""
        assert is_public(address)

    @pytest.mark.parametrize("family", ["::1", "0:0:0:0:0:0:0:1"])
    def test_the_origin_that_is_advised_is_one_that_can_be_allowed(self, make, family):
        """Whoever does what the message says gets the image, from an IPv6 address, too."""
        if not socket.has_dualstack_ipv6():
            pytest.skip("this machine has no IPv6")
        with host(address="") as everywhere:
            everywhere.serve("/a.png", IMAGE)
            url = f"http://[{family}]:{everywhere.port}/a.png"
            with pytest.raises(FetchError) as caught:
                make().fetch(url)
            [advised] = re.findall(r"add (\S+) to LABELNEXT_ALLOWED_ORIGINS", str(caught.value))
            assert Settings.read({"LABELNEXT_ALLOWED_ORIGINS": f"{advised}/"}).allowed_origins == (advised,)
            assert make(allowed_origins=(advised,)).fetch(url) == IMAGE

    @pytest.mark.parametrize("allowed", ["HTTP://LocalHost:{port}/", " http://me:secret@localhost:{port}/bucket "])
    def test_an_allowed_origin_may_be_spelled_as_any_address(self, home, make, allowed):
        """Capitals, a path and spaces do not matter."""
        home.serve("/a.png", IMAGE)
        fetcher = make(allowed_origins=(allowed.format(port=home.port),))
        assert fetcher.fetch(f"http://localhost:{home.port}/a.png") == IMAGE

    @pytest.mark.parametrize(
        ("allowed", "asked"),
        [
            ("https://minio.test:443", "https://minio.test/a.png"),
            ("http://minio.test", "http://MINIO.test:80/a.png"),
            ("http://[FD00::0:9]:9000", "http://[fd00::9]:9000/a.png"),
            ("http://[fe80::1%25eth0]:9000", "http://[fe80::1%eth0]:9000/a.png"),
            ("http://127.1:9000", "http://127.0.0.1:9000/a.png"),
            ("http://b\u00fccher.test", "http://xn--bcher-kva.test/a.png"),
        ],
    )
    def test_one_origin_in_two_spellings_is_allowed_by_either(self, allowed, asked):
        """Default ports, short forms of addresses, zones and scripts name the same host."""
        assert HttpUrl.parse(allowed).origin == HttpUrl.parse(asked).origin

    def test_one_private_address_is_enough_to_refuse(self, make):
        """A name with a public and a private address may lead to either."""
        with pytest.raises(FetchError, match="public internet"):
            make(resolve=lambda host, port: [PUBLIC, "10.0.0.1"]).fetch("http://images.test/a.png")

    @pytest.fixture
    def internet(self, elsewhere, monkeypatch):
        """Public addresses that all lead to one loopback server; yields the addresses that were connected to."""
        connected = []

        def connect(address, timeout, **_):
            connected.append(address)
            return socket.create_connection(("127.0.0.1", elsewhere.port), timeout)

        monkeypatch.setattr(contract.images.connections, "create_connection", connect)
        return connected

    def test_the_connection_goes_to_the_address_that_was_checked(self, elsewhere, internet, make):
        """A name that resolves to something else at its second look-up gets no second look-up."""
        elsewhere.serve("/a.png", IMAGE)
        answers = iter([[PUBLIC], ["127.0.0.1"]])
        assert make(resolve=lambda host, port: next(answers)).fetch("http://rebinding.test:81/a.png") == IMAGE
        assert internet == [(PUBLIC, 81)]
        assert elsewhere.requests[0].headers["Host"] == "rebinding.test:81"

    def test_a_redirect_into_the_private_network_is_refused(self, home, elsewhere, internet, make):
        """Each hop is judged as if the task had named it."""
        elsewhere.serve("/a.png", status=302, location="http://169.254.169.254/latest/meta-data/")
        names = {"images.test": [PUBLIC]}
        fetcher = make(resolve=lambda host, port: names.get(host, [host]), label_studio_url=home.url)
        with pytest.raises(FetchError, match=re.escape("169.254.169.254 is not on the public internet")):
            fetcher.fetch("http://images.test/a.png")
        assert len(elsewhere.requests) == 1

    @pytest.mark.parametrize(
        ("location", "message"),
        [
            *((other, "not a URL") for other in ("file:///etc/passwd", "data:,x", "http://[bad", "gopher://a/")),
            ("/data/upload/" + "a" * 9000, "longer than 8192 characters"),
        ],
        ids=["file", "data", "bad", "gopher", "long"],
    )
    def test_a_redirect_to_anything_but_http_is_refused(self, home, make, location, message):
        """A host cannot turn a request into a look at our disk; its address is bound as the reference itself is."""
        home.serve(UPLOAD, status=302, location=location)
        with pytest.raises(FetchError, match=f"redirects to what is {message}"):
            make(label_studio_url=home.url).fetch(UPLOAD)

    def test_three_redirects_are_followed_and_no_more(self, home, make):
        """The fourth is an error."""
        for hop in range(5):
            home.serve(f"/data/upload/{hop}", status=302, location=f"/data/upload/{hop + 1}")
        home.serve("/data/upload/4", IMAGE)
        fetcher = make(label_studio_url=home.url)
        assert fetcher.fetch("/data/upload/1") == IMAGE
        with pytest.raises(FetchError, match="more than 3 times"):
            fetcher.fetch("/data/upload/0")


class TestLater:
    """Which failures pass by themselves, so that it is worth asking again."""

    @pytest.mark.parametrize(
        ("status", "later"),
        [(429, 1), (408, 1), (500, 1), (502, 1), (503, 1), (504, 1), (404, 0), (410, 0), (403, 0), (401, 0), (400, 0)],
    )
    def test_a_host_that_is_busy_or_broken_may_answer_later(self, home, make, status, later):
        """One that has no such file will not."""
        home.serve(UPLOAD, status=status)
        with pytest.raises(FetchError, match=f"answered {status}") as caught:
            make(label_studio_url=home.url).fetch(UPLOAD)
        assert (caught.value.later, caught.value.code) == (bool(later), "fetch")

    def test_a_host_that_is_down_may_answer_later(self, make):
        """A closed port, or a name that is unknown while a container is restarted; the message names the host."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            closed = f"http://127.0.0.1:{server.getsockname()[1]}"
        fetcher = make(allowed_origins=(closed,), resolve=unknown)
        for url in (f"{closed}/a.png", "http://gone.test/a.png"):
            with pytest.raises(TemporaryFetchError, match=f"{re.escape(url)} cannot be reached"):
                fetcher.fetch(url)

    @pytest.mark.parametrize("reference", ["data:,", "http://10.0.0.1/a.png"])
    def test_what_must_not_or_cannot_be_fetched_stays_so(self, make, reference):
        """Whatever the time."""
        with pytest.raises(FetchError) as caught:
            make().fetch(reference)
        assert not caught.value.later


class TestMessages:
    def test_messages_hold_neither_query_nor_password_nor_token(self, home, make):
        """Signed URLs and tokens are secrets, and messages end up in logs."""
        fetcher = make(label_studio_url=home.url, api_token=LEGACY)
        url = f"http://me:password@127.0.0.1:{home.port}/data/upload/1/gone.png?signature=hidden#part"
        with pytest.raises(FetchError) as caught:
            fetcher.fetch(url)
        message = str(caught.value)
        assert f"127.0.0.1:{home.port}/data/upload/1/gone.png answered 404" in message
        assert not [word for word in ("password", "hidden", "part", LEGACY) if word in message]

    def test_messages_are_one_line_of_bounded_length(self, make):
        """A reference is a stranger's text; it must not forge lines of a log."""
        with pytest.raises(FetchError) as caught:
            make().fetch("nonsense\n2026-11-22 ERROR forged" + "x" * 10_000)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500

    @pytest.mark.parametrize("url", ["minio:9000", "ftp://minio", "http://", "http://[bad"])
    def test_addresses_in_the_settings_must_be_urls(self, make, url):
        """A wrong setting is said when the fetcher is made, not at the first image."""
        with pytest.raises(ConfigError, match="expected an address"):
            make(allowed_origins=(url,))
        with pytest.raises(ConfigError, match="expected an address"):
            make(label_studio_url=url)
        with pytest.raises(ConfigError, match="LABELNEXT_LABEL_STUDIO_PUBLIC_URL"):
            make(label_studio_public_url=url)
