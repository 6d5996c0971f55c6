import traceback

import pytest

from bench.harness.hosts import host, reply, silence
from contract.errors import ConfigError, PublishConflict, RepositoryUnreachable
from contract.versions.bucket import Bucket
from tests.buckets import environment

MAX_BYTES = 64 * 2**20


@pytest.fixture
def stub(monkeypatch):
    """A host whose responses the tests define."""
    with host() as stub:
        point_at(stub.url, monkeypatch)
        yield stub


def point_at(url, monkeypatch):
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 8 * 2**20, 20 * 2**20 + 1])
def test_file_round_trip(bucket, tmp_path, size):
    """An empty file, and files of one and several parts. A second upload with the same key is an error."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    bucket.upload("file", source)
    bucket.download("file", target, size_bytes=size)
    assert target.read_bytes() == source.read_bytes() == bucket.read("file", max_bytes=size).content
    other = tmp_path / "other"
    other.write_bytes(source.read_bytes() + b"!")
    with pytest.raises(PublishConflict, match="exists already, and versions never change"):
        bucket.upload("file", other)
    assert bucket.read("file", max_bytes=size).content == source.read_bytes()


def test_reads_at_most_the_given_size(bucket, tmp_path):
    """Large objects fill neither disk nor memory."""
    bucket.write("file", b"12345")
    for size, content in ((3, b"123"), (9, b"12345")):
        bucket.download("file", tmp_path / "file", size_bytes=size)
        assert (tmp_path / "file").read_bytes() == content
    with pytest.raises(RepositoryUnreachable, match=r"at most 4 bytes .* it has 5 bytes"):
        bucket.read("file", max_bytes=4)


def test_replace_is_conditional(bucket):
    """Of two writers with one tag the second fails, unless the object has its content, as after a lost response."""
    bucket.replace("CURRENT", b"first", expected=None)
    with pytest.raises(PublishConflict):
        bucket.replace("CURRENT", b"other", expected=None)
    tag = bucket.read("CURRENT", max_bytes=MAX_BYTES).tag
    for _ in range(2):
        bucket.replace("CURRENT", b"second", expected=tag)
    with pytest.raises(PublishConflict, match="changed by another writer"):
        bucket.replace("CURRENT", b"third", expected=tag)
    assert bucket.read("CURRENT", max_bytes=MAX_BYTES).content == b"second"
    bucket.delete(["CURRENT"])
    with pytest.raises(PublishConflict):
        bucket.replace("CURRENT", b"fourth", expected=tag)


def test_tags_without_quotes_are_accepted(stub):
    """Ceph 16 accepts only such tags in conditions."""
    stored = [b"first"]

    def answer(handler, request):
        if request.method == "PUT" and request.headers["if-match"] != "1":
            reply(b"<Code>PreconditionFailed</Code>", status=412)(handler, request)
            return
        if request.method == "PUT":
            stored[0] = request.body
        content = stored[0] if request.method == "GET" else b""
        reply(content, etag='"1"', last_modified="Mon, 23 Nov 2026 10:00:00 GMT")(handler, request)

    stub.answers["/bucket/x/CURRENT"] = answer
    bucket = Bucket("bucket", "x")
    bucket.replace("CURRENT", b"second", expected='"1"')
    assert stored == [b"second"]
    with pytest.raises(PublishConflict):
        bucket.replace("CURRENT", b"third", expected='"2"')
    assert [request.headers["if-match"] for request in stub.requests if request.method == "PUT"] == ['"1"', "1", '"2"']


def test_missing_bucket_is_an_error(bucket, tmp_path):
    missing = Bucket("missing-bucket", "x")
    (tmp_path / "file").write_bytes(b"1")
    for request in (
        lambda: missing.read("CURRENT", max_bytes=MAX_BYTES),
        lambda: missing.times("model"),
        lambda: missing.download("file", tmp_path / "target", size_bytes=1),
        lambda: missing.upload("file", tmp_path / "file"),
        lambda: missing.write("file", b"1"),
        lambda: missing.replace("CURRENT", b"1", expected=None),
        lambda: missing.delete(["CURRENT"]),
    ):
        with pytest.raises(RepositoryUnreachable, match=r"s3://missing-bucket/x could not be .* 404 \(NoSuchBucket\)"):
            request()


REFUSAL = b"""<?xml version="1.0"?><Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKIAEXAMPLE</AWSAccessKeyId>
<StringToSign>secret-material</StringToSign></Error>"""


@pytest.mark.parametrize(
    ("status", "advice"), [(403, "403 .SignatureDoesNotMatch.; check AWS_ACCESS_KEY_ID"), (500, "500 .*network")]
)
def test_error_shows_no_credentials(stub, status, advice):
    """Only status, code and remedy, also in the traceback."""
    stub.serve("/bucket/x/CURRENT", REFUSAL, status=status)
    with pytest.raises(RepositoryUnreachable, match=f"s3://bucket/x could not be read .CURRENT.: .*{advice}") as caught:
        Bucket("bucket", "x").read("CURRENT", max_bytes=MAX_BYTES)
    shown = "".join(traceback.format_exception(caught.value))
    for secret in ("AKIAEXAMPLE", "not-to-be-seen", "secret-material"):
        assert secret not in shown
    assert len(stub.requests) <= 2
    assert isinstance(caught.value, OSError)  # so that callers handle it like a failing disk
    assert caught.value.strerror == str(caught.value)


HEADERS = {"etag": '"1"', "last_modified": "Mon, 23 Nov 2026 10:00:00 GMT"}
HEAD = b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\nETag: "1"\r\nLast-Modified: Mon, 23 Nov 2026 10:00:00 GMT\r\n\r\n'


@pytest.mark.slow
@pytest.mark.parametrize("answer", [silence(), silence(HEAD + b"beginning")], ids=["hangs", "stops"])
def test_gives_up_on_a_silent_bucket_within_seconds(stub, answer):
    """It then pauses, so that a page with many requests waits only once."""
    stub.answers["/bucket/x/CURRENT"] = answer
    time_s = [0.0]
    bucket = Bucket("bucket", "x", clock=lambda: time_s[0])
    with pytest.raises(RepositoryUnreachable, match="did not answer"):
        bucket.read("CURRENT", max_bytes=MAX_BYTES)
    requests = len(stub.requests)
    with pytest.raises(RepositoryUnreachable, match="did not answer a moment ago"):
        bucket.read("CURRENT", max_bytes=MAX_BYTES)
    assert len(stub.requests) == requests
    time_s[0] = 6.0
    stub.answers["/bucket/x/CURRENT"] = reply(b"content", **HEADERS)
    assert bucket.read("CURRENT", max_bytes=MAX_BYTES).content == b"content"


def test_unreachable_host_and_forbidden_http(monkeypatch):
    point_at("http://127.0.0.1:1", monkeypatch)
    with pytest.raises(RepositoryUnreachable, match="did not answer; check the bucket's name, AWS_ENDPOINT"):
        Bucket("bucket", "x").times("model")
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(RepositoryUnreachable, match="AWS_ALLOW_HTTP=true"):
        Bucket("bucket", "x").times("model")


@pytest.mark.parametrize("value", ["", "not a url", "ftp://host", "http://", "http://user:secret@host", "http://[::1"])
@pytest.mark.parametrize("name", ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_rejects_invalid_endpoints(monkeypatch, name, value):
    """The library would panic; the message does not contain the value, which may have a password."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} must be an http or https URL") as caught:
        Bucket("bucket", "x")
    assert "secret" not in str(caught.value)


def test_rejects_invalid_variables(monkeypatch):
    monkeypatch.setenv("AWS_ALLOW_HTTP", "perhaps")
    with pytest.raises(ConfigError, match="an AWS_ variable has an invalid value"):
        Bucket("bucket", "x")


def test_object_name_with_dots_is_an_error(store, bucket):
    """The library cannot list a folder with such an object."""
    store.request("PUT", f"{bucket.location.removeprefix('s3://')}/model/%2e%2e/x", body=b"1")
    with pytest.raises(RepositoryUnreachable, match=r"a name with empty parts, \. or \.\.; remove it"):
        bucket.times("model")
