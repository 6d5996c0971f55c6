import base64
import dataclasses
import json
import sys
from functools import partial

import pytest

from bench.harness.hosts import host, reply
from bench.subjects.tiny_model import PASSES, TinyModel, publish
from server import check as checking
from server.__main__ import main
from server.check import check
from server.settings import Precision
from tests.contract.images.conftest import jwt

NAMES = ["settings", "repository", "version", "provider", "precision", "speed", "memory", "cache", "label_studio"]
WITHOUT_VERSION = ["settings", "repository", "cache", "label_studio"]
KEY = base64.b64encode(b"Ed" + bytes(40)).decode()
LEGACY = "f00dfeedf00dfeed"


def run_check(settings, name, **changed):
    """Return the result of one check after changing these settings."""
    report = check(dataclasses.replace(settings, **changed))
    (result,) = (each for each in report.checks if each.name == name)
    assert report.ok == all(each.ok for each in report.checks)
    return result


@pytest.fixture
def studio():
    """A Label Studio that accepts one legacy token and one personal access token."""

    def whoami(handler, request):
        known = request.headers.get("Authorization") in (f"Token {LEGACY}", f"Bearer {jwt('access')}")
        reply(b"{}", status=200 if known else 401)(handler, request)

    def refresh(handler, request):
        if json.loads(request.body) == {"refresh": jwt("refresh")}:
            reply(json.dumps({"access": jwt("access")}).encode())(handler, request)
        else:
            reply(b"{}", status=401)(handler, request)

    with host() as served:
        served.answers = {"/studio/api/current-user/whoami": whoami, "/studio/api/token/refresh/": refresh}
        yield served


def test_all_checks_pass_for_a_valid_version(repository, monkeypatch, capsys):
    """The command prints one line of JSON."""
    monkeypatch.setenv("LABELNEXT_PROVIDER", "cpu")
    name = publish(repository)
    assert main(["check", str(repository.root)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert [(each["name"], each["ok"]) for each in report["checks"]] == [(name, True) for name in NAMES]
    expected = {"ok": True, "version": name, "passes": PASSES, "dropout_sites": 2, "provider": "cpu"}
    assert report.items() >= expected.items()
    assert 0 < report["mean_bald"] < 1.1
    assert min(report["image_ms"], report["batch_ms"]) > 0
    assert 0 < report["memory_mb"] <= report["swap_memory_mb"]


def test_each_of_several_models_is_checked(repository, settings):
    good = publish(repository.for_model("birds"))
    publish(repository.for_model("cars"), probe_of=TinyModel.draw(seed=7))
    report = check(settings)
    names = ["version of birds", "provider of birds", "precision of birds", "speed of birds", "version of cars"]
    assert [each.name for each in report.checks] == [*NAMES[:2], *names, *NAMES[-3:]]
    assert [each.name for each in report.checks if not each.ok] == ["version of cars"]
    assert report.figures["models"]["birds"]["version"] == good
    assert report.figures["models"]["cars"] == {}
    report = check(dataclasses.replace(settings, model="birds"))
    assert [each.name for each in report.checks] == NAMES
    assert report.ok


def test_independent_checks_run_without_a_version(settings):
    report = check(settings)
    results = [(each.name, each.ok) for each in report.checks]
    assert results == [(name, name != "repository") for name in WITHOUT_VERSION]
    assert "python -m trainer run" in report.faults[0]
    assert report.figures == {}


@pytest.mark.slow
def test_unsuitable_versions_and_settings_fail_their_checks(repository, settings, monkeypatch):
    """A server would fall back to fp32, miss its deadlines, or run out of memory at the next swap."""
    publish(repository)
    monkeypatch.setattr(checking, "memory_limit_bytes", lambda: 10 * 2**20)
    for name, changed, detail in (
        ("precision", {"precision": Precision.INT8}, "int8 needs a version with an int8 backbone"),
        ("speed", {"deadline_s": 1e-6}, "LABELNEXT_MAX_BATCH_IMAGES"),
        ("memory", {}, "the container's limit is 10"),
    ):
        result = run_check(settings, name, **changed)
        assert not result.ok
        assert detail in result.detail
    assert run_check(settings, "precision", precision=Precision.AUTO).ok


def test_the_cache_folder_must_be_writable_and_have_room(settings, tmp_path):
    folder = tmp_path / "a" / "b"
    assert run_check(settings, "cache", cache_dir=folder, cache_mb=1).ok
    assert list(folder.iterdir()) == []
    assert run_check(settings, "cache", cache_mb=0).detail == "the feature cache is disabled"
    (tmp_path / "file").write_text("")
    assert not run_check(settings, "cache", cache_dir=tmp_path / "file" / "folder").ok
    result = run_check(settings, "cache", cache_dir=tmp_path, cache_mb=2**40)
    assert not result.ok
    assert "LABELNEXT_CACHE_MB" in result.detail


def test_label_studio_must_accept_the_token(settings, studio):
    """Both kinds of tokens work; the message for a refused one does not show it."""
    url = f"{studio.url}/studio"
    check_studio = partial(run_check, settings, "label_studio", label_studio_url=url)
    assert "LABELNEXT_LABEL_STUDIO_TOKEN is not set" in check_studio().detail
    assert check_studio().ok  # public images can be scored without a token
    assert not check_studio(label_studio_url="http://127.0.0.1:9", label_studio_token=LEGACY).ok
    for token in (LEGACY, jwt("refresh")):
        assert check_studio(label_studio_token=token).ok
    for token in ("wrong", jwt("refresh") + "x"):
        result = check_studio(label_studio_token=token)
        assert not result.ok
        assert "401" in result.detail
        assert "personal access token from the account settings" in result.detail
        assert token not in result.detail


def test_an_unexpected_error_fails_only_its_check(settings, monkeypatch):
    def break_down(_):
        raise RuntimeError("broken")

    monkeypatch.setattr(checking, "_check_cache", break_down)
    assert run_check(settings, "cache").detail == "RuntimeError: broken"
    assert run_check(settings, "label_studio").ok


@pytest.mark.parametrize(
    ("module", "variable", "value", "requirements"),
    [
        ("obstore", "LABELNEXT_MODELS", "s3://bucket/models", "requirements/s3.txt"),
        ("minisign", "LABELNEXT_VERIFY_KEY", KEY, "requirements/signatures.txt"),
    ],
)
def test_a_missing_package_fails_the_repository_check(monkeypatch, capsys, module, variable, value, requirements):
    for name in [name for name in sys.modules if name == "contract.versions.bucket" or name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # makes the import fail
    monkeypatch.setenv(variable, value)
    assert main(["check"]) == 1
    printed = capsys.readouterr()
    checks = json.loads(printed.out)["checks"]
    assert [(each["name"], each["ok"]) for each in checks] == [(name, name != "repository") for name in WITHOUT_VERSION]
    assert requirements in checks[1]["detail"]
    assert requirements in printed.err


def test_all_invalid_settings_are_reported(monkeypatch, capsys):
    monkeypatch.setenv("LABELNEXT_THREADS", "none")
    monkeypatch.setenv("LABELNEXT_POLL_S", "-1")
    assert main(["check"]) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert [report["ok"], *(each["name"] for each in report["checks"])] == [False, "settings"]
    for name in ("LABELNEXT_THREADS", "LABELNEXT_POLL_S"):
        assert name in report["checks"][0]["detail"]
        assert name in printed.err
