import json
import socket
from contextlib import nullcontext, suppress

import pytest

import contract.images.connections
import contract.images.local
from contract.errors import FetchError
from contract.images.fetch import Fetcher
from server.settings import Settings
from tests.contract.images.conftest import IMAGE, LEGACY, PUBLIC, Clock, unknown
from trainer.settings import Environment


class TestPublicAddress:
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

    @pytest.mark.parametrize(
        ("said", "url", "own"),
        [
            ("http://localhost:8080", "http://127.0.0.1:8080", True),
            ("http://localhost:8080", "http://[::1]:8080", True),
            ("http://localhost:8080", "http://127.0.0.1:8081", False),
            ("http://localhost:8080", "https://127.0.0.1:8080", False),
            ("http://localhost:8080", "http://10.0.0.1:8080", False),
            ("", "http://localhost:8080", True),
            ("", "https://127.0.0.1:1", True),
            ("", "http://[::1]:8080/any/prefix", True),
            ("", "http://studio.localhost", True),
        ],
    )
    def test_this_machine_has_several_names(self, home, says, make, said, url, own):
        """One port is one program, whichever of them its pages were opened by; another port is somebody else's.

        As in compose.yaml: where it does not say, who wrote such a reference saw Label Studio there.
        """
        says(said)
        fetcher = make(label_studio_url=home.url, api_token=LEGACY)
        with nullcontext() if own else pytest.raises(FetchError, match="not on the public internet"):
            assert fetcher.fetch(f"{url}/data/upload/1/a.png") == IMAGE
        assert self.images(home) == ([("/data/upload/1/a.png", f"Token {LEGACY}")] if own else [])

    @pytest.mark.parametrize("said", ["", "http://localhost:{}"])
    def test_an_allowed_origin_is_itself(self, home, elsewhere, says, make, said):
        """Whoever allows an origin of this machine says that images lie there."""
        says(said.format(elsewhere.port))
        elsewhere.serve("/data/upload/1/a.png", b"what people see")
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, allowed_origins=(elsewhere.url,))
        assert fetcher.fetch(f"{elsewhere.url}/data/upload/1/a.png") == b"what people see"
        assert "Authorization" not in elsewhere.requests[0].headers

    @pytest.mark.parametrize("told", [True, False])
    def test_local_files_at_the_public_address_are_read_from_disk(self, make, tmp_path, told):
        (tmp_path / "b c.png").write_bytes(IMAGE)
        url = self.PUBLIC if told else "http://localhost:8080"
        settings = {"label_studio_public_url": self.PUBLIC} if told else {"label_studio_url": "http://127.0.0.1:1"}
        fetcher = make(local_files_root=tmp_path, **settings)
        assert fetcher.fetch(f"{url}/data/local-files/?d=b%20c.png") == IMAGE
        assert not fetcher.is_remote(f"{url}/data/local-files/?d=b%20c.png")
        with pytest.raises(FetchError, match="local file"):
            fetcher.fetch(f"{url}/data/local-files/?d=../b%20c.png")

    @pytest.mark.parametrize("program", [Settings, Environment])
    def test_both_programs_are_told_by_one_variable(self, tmp_path, program):
        (tmp_path / "a.png").write_bytes(IMAGE)
        environ = {"LABELNEXT_LABEL_STUDIO_PUBLIC_URL": self.PUBLIC, "LABELNEXT_LOCAL_FILES_ROOT": str(tmp_path)}
        with Fetcher(program.read(environ).fetch_settings()) as fetcher:
            assert fetcher.fetch(f"{self.PUBLIC}/data/local-files/?d=a.png") == IMAGE

    def test_label_studio_may_lead_to_itself_by_its_public_name(self, home, says, make):
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
        """Every ten minutes if it says one, every minute if not, never with the token; what it last said holds."""
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
        home.serve("/docs/api/schema/json/", b"", status=503)
        clock.now += 700
        assert fetcher.fetch(f"{new}/data/upload/1/a.png") == IMAGE

    def test_usual_references_do_not_ask_for_it(self, home, says, make):
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
        says("")
        fetcher = make(label_studio_url=home.url, label_studio_public_url=public)
        assert fetcher.source("//images.example.org/a.png") == f"{scheme}://images.example.org/a.png"
