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


def ask(settings, name, **changed):
    """Return the answer to one question, under settings that were changed."""
    report = check(dataclasses.replace(settings, **changed))
    (found,) = (each for each in report.checks if each.name == name)
    assert report.ok == all(each.ok for each in report.checks)
    return found


@pytest.fixture
def studio():
    """Something that knows one legacy token, and hands out access tokens for one personal access token."""

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


def test_all_is_well_with_a_sound_version(repository, monkeypatch, capsys):
    """The command prints one line of JSON, with the questions in the order in which a server would meet trouble."""
    monkeypatch.setenv("LABELNEXT_PROVIDER", "cpu")
    name = publish(repository)
    assert main(["check", str(repository.root)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert [(each["name"], each["ok"]) for each in report["checks"]] == [(name, True) for name in NAMES]
    about = {"ok": True, "version": name, "passes": PASSES, "dropout_sites": 2, "provider": "cpu"}
    assert report.items() >= about.items()
    assert 0 < report["mean_bald"] < 1.1
    assert min(report["image_ms"], report["batch_ms"]) > 0
    assert 0 < report["memory_mb"] <= report["swap_memory_mb"]


def test_several_models_are_asked_about_one_by_one(repository, settings):
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


def test_without_a_version_the_rest_is_still_asked(settings):
    """An operator gets the whole list, and not the first fault alone."""
    report = check(settings)
    found = [(each.name, each.ok) for each in report.checks]
    assert found == [(name, name != "repository") for name in WITHOUT_VERSION]
    assert "python -m trainer run" in report.faults[0]
    assert report.figures == {}


@pytest.mark.slow
def test_a_version_that_would_not_do_here_is_a_fault(repository, settings, monkeypatch):
    """A server would go on in fp32, answer no request, or be killed at the next version, and not before."""
    publish(repository)
    monkeypatch.setattr(checking, "memory_limit_bytes", lambda: 10 * 2**20)
    for name, changed, detail in (
        ("precision", {"precision": Precision.INT8}, "int8 needs one whose trainer found it as good"),
        ("speed", {"deadline_s": 1e-6}, "LABELNEXT_MAX_BATCH_IMAGES"),
        ("memory", {}, "the container may take 10"),
    ):
        found = ask(settings, name, **changed)
        assert not found.ok
        assert detail in found.detail
    assert ask(settings, "precision", precision=Precision.AUTO).ok


def test_the_cache_s_folder_is_tried(settings, tmp_path):
    folder = tmp_path / "a" / "b"
    assert ask(settings, "cache", cache_dir=folder, cache_mb=1).ok
    assert list(folder.iterdir()) == []
    assert ask(settings, "cache", cache_mb=0).detail == "nothing is kept"
    (tmp_path / "file").write_text("")
    assert not ask(settings, "cache", cache_dir=tmp_path / "file" / "folder").ok
    found = ask(settings, "cache", cache_dir=tmp_path, cache_mb=2**40)
    assert not found.ok
    assert "LABELNEXT_CACHE_MB" in found.detail


def test_label_studio_is_asked_who_the_token_is(settings, studio):
    """Both kinds work, and a path in the address is kept; of another the message says what to do and shows nothing."""
    url = f"{studio.url}/studio"
    ask_of = partial(ask, settings, "label_studio", label_studio_url=url)
    assert "LABELNEXT_LABEL_STUDIO_TOKEN is not set" in ask_of().detail
    assert ask_of().ok  # images from elsewhere can be scored without
    assert not ask_of(label_studio_url="http://127.0.0.1:9", label_studio_token=LEGACY).ok
    for token in (LEGACY, jwt("refresh")):
        assert ask_of(label_studio_token=token).ok
    for token in ("wrong", jwt("refresh") + "x"):
        found = ask_of(label_studio_token=token)
        assert not found.ok
        assert "401" in found.detail
        assert "personal access token from the account settings" in found.detail
        assert token not in found.detail


def test_what_nobody_foresaw_is_a_fault_of_that_question_alone(settings, monkeypatch):
    def break_down(_):
        raise RuntimeError("broken")

    monkeypatch.setattr(checking, "_check_cache", break_down)
    assert ask(settings, "cache").detail == "RuntimeError: broken"
    assert ask(settings, "label_studio").ok


@pytest.mark.parametrize(
    ("module", "variable", "value", "wanted"),
    [
        ("obstore", "LABELNEXT_MODELS", "s3://bucket/models", "requirements/s3.txt"),
        ("minisign", "LABELNEXT_VERIFY_KEY", KEY, "requirements/signatures.txt"),
    ],
)
def test_a_package_that_is_missing_is_a_fault_of_the_repository(monkeypatch, capsys, module, variable, value, wanted):
    for name in [name for name in sys.modules if name == "contract.versions.bucket" or name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # which is how an import fails
    monkeypatch.setenv(variable, value)
    assert main(["check"]) == 1
    printed = capsys.readouterr()
    checks = json.loads(printed.out)["checks"]
    assert [(each["name"], each["ok"]) for each in checks] == [(name, name != "repository") for name in WITHOUT_VERSION]
    assert wanted in checks[1]["detail"]
    assert wanted in printed.err


def test_wrong_settings_are_reported_all_at_once(monkeypatch, capsys):
    monkeypatch.setenv("LABELNEXT_THREADS", "none")
    monkeypatch.setenv("LABELNEXT_POLL_S", "-1")
    assert main(["check"]) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert [report["ok"], *(each["name"] for each in report["checks"])] == [False, "settings"]
    for name in ("LABELNEXT_THREADS", "LABELNEXT_POLL_S"):
        assert name in report["checks"][0]["detail"]
        assert name in printed.err
