import base64
import dataclasses
import json
import sys

import pytest

from bench.hosts import host, reply
from bench.tiny_model import publish
from server import check as checking
from server.__main__ import main
from server.check import check
from server.settings import Precision

NAMES = [
    "settings",
    "repository",
    "version",
    "provider",
    "precision",
    "speed",
    "memory",
    "cache",
    "label_studio",
]
KEY = base64.b64encode(b"Ed" + bytes(40)).decode()
LEGACY = "f00dfeedf00dfeed"


def jwt(kind):
    claims = base64.urlsafe_b64encode(json.dumps({"token_type": kind}).encode()).decode().rstrip("=")
    return f"e30.{claims}.c2ln"


def answers(report):
    return {each.name: each for each in report.checks}


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


def test_all_is_well_with_a_sound_version(repository, settings):
    """Every question is asked, in the order in which a server would meet the trouble, and none finds any."""
    name = publish(repository)
    report = check(settings)
    assert [each.name for each in report.checks] == NAMES
    assert report.faults == []
    assert report.ok
    assert report.figures["version"] == name
    assert report.figures["image_ms"] > 0
    assert report.figures["batch_ms"] > 0
    assert 0 < report.figures["memory_mb"] <= report.figures["swap_memory_mb"]


def test_the_report_is_one_line(repository, settings):
    """Machines read it."""
    publish(repository)
    line = check(settings).to_json()
    assert "\n" not in line
    assert [each["name"] for each in json.loads(line)["checks"]] == NAMES


def test_without_a_version_the_rest_is_still_asked(settings):
    """An operator gets the whole list, and not the first fault alone."""
    report = check(settings)
    assert [each.name for each in report.checks] == ["settings", "repository", "cache", "label_studio"]
    assert [each.name for each in report.checks if not each.ok] == ["repository"]
    assert "python -m trainer run" in answers(report)["repository"].detail
    assert report.figures == {}


def test_a_version_that_is_not_valid_is_a_fault(repository, settings):
    """What is not valid is not measured."""
    from bench.tiny_model import TinyModel

    publish(repository, probe_of=TinyModel.draw(5))
    report = check(settings)
    assert [each.name for each in report.checks if not each.ok] == ["version"]
    assert "speed" not in answers(report)


def test_a_precision_that_was_asked_for_and_is_not_served_is_a_fault(repository, settings):
    """A server would go on in fp32 with a warning; before a roll-out the operator is to know."""
    publish(repository)
    wanted = dataclasses.replace(settings, precision=Precision.INT8)
    assert "published with --int8" in answers(check(wanted))["precision"].detail
    assert not answers(check(wanted))["precision"].ok
    assert answers(check(dataclasses.replace(settings, precision=Precision.AUTO)))["precision"].ok


def test_a_batch_that_takes_longer_than_a_request_may_is_a_fault(repository, settings):
    """No request would be answered."""
    publish(repository)
    report = check(dataclasses.replace(settings, deadline_s=1e-6))
    assert "LABELNEXT_MAX_BATCH_IMAGES" in answers(report)["speed"].detail
    assert not report.ok


def test_a_container_too_small_for_a_swap_is_a_fault(repository, settings, monkeypatch):
    """It would be killed when the next version is published, and not before."""
    publish(repository)
    monkeypatch.setattr(checking, "memory_limit", lambda: 10 * 2**20)
    report = check(settings)
    assert not answers(report)["memory"].ok
    assert "the container may take 10" in answers(report)["memory"].detail
    assert report.figures["swap_memory_mb"] > 10


def test_the_cache_s_folder_is_tried(settings, tmp_path):
    """It is made, written to, and left as it was."""
    folder = tmp_path / "a" / "b"
    assert answers(check(dataclasses.replace(settings, cache_dir=folder, cache_mb=1)))["cache"].ok
    assert list(folder.iterdir()) == []


def test_a_cache_s_folder_that_cannot_be_written_is_a_fault(settings, tmp_path):
    """A file stands in its place."""
    (tmp_path / "file").write_text("")
    report = check(dataclasses.replace(settings, cache_dir=tmp_path / "file" / "folder"))
    assert not answers(report)["cache"].ok


def test_a_disk_too_small_for_the_cache_is_a_fault(settings, tmp_path):
    """A cache that fills the disk would stop what else writes there."""
    report = check(dataclasses.replace(settings, cache_dir=tmp_path, cache_mb=2**40))
    assert "LABELNEXT_CACHE_MB" in answers(report)["cache"].detail
    assert not report.ok


def test_no_cache_needs_no_folder(settings):
    """LABELNEXT_CACHE_MB=0 keeps nothing."""
    assert answers(check(dataclasses.replace(settings, cache_mb=0)))["cache"].detail == "nothing is kept"


@pytest.mark.parametrize("token", [LEGACY, jwt("refresh")])
def test_label_studio_is_asked_who_the_token_is(settings, studio, token):
    """Both kinds of token work, and a path in the address is kept."""
    wanted = dataclasses.replace(settings, label_studio_url=f"{studio.url}/studio", label_studio_token=token)
    assert answers(check(wanted))["label_studio"].ok


@pytest.mark.parametrize("token", ["wrong", jwt("refresh") + "x"])
def test_a_token_that_label_studio_does_not_know_is_a_fault(settings, studio, token):
    """The message says what to do and does not show the token."""
    wanted = dataclasses.replace(settings, label_studio_url=f"{studio.url}/studio", label_studio_token=token)
    found = answers(check(wanted))["label_studio"]
    assert not found.ok
    assert "401" in found.detail
    assert "personal access token from the account settings" in found.detail
    assert token not in check(wanted).to_json()


def test_label_studio_without_a_token_is_only_reached(settings, studio):
    """Images from elsewhere can be scored without."""
    found = answers(check(dataclasses.replace(settings, label_studio_url=f"{studio.url}/studio")))["label_studio"]
    assert found.ok
    assert "LABELNEXT_LABEL_STUDIO_TOKEN is not set" in found.detail


def test_label_studio_that_does_not_answer_is_a_fault(settings):
    """Nobody listens there."""
    wanted = dataclasses.replace(settings, label_studio_url="http://127.0.0.1:9", label_studio_token=LEGACY)
    assert not answers(check(wanted))["label_studio"].ok


def test_what_nobody_foresaw_is_a_fault_of_that_question_alone(settings, monkeypatch):
    """The others are asked all the same."""

    def break_down(_):
        raise RuntimeError("broken")

    monkeypatch.setattr(checking, "_use_cache", break_down)
    report = check(settings)
    assert answers(report)["cache"].detail == "RuntimeError: broken"
    assert answers(report)["label_studio"].ok


@pytest.mark.parametrize(
    ("module", "variable", "value", "wanted"),
    [
        ("obstore", "LABELNEXT_MODELS", "s3://bucket/models", "requirements/s3.txt"),
        ("minisign", "LABELNEXT_VERIFY_KEY", KEY, "requirements/signatures.txt"),
    ],
)
def test_a_package_that_is_missing_is_a_fault_of_the_repository(monkeypatch, capsys, module, variable, value, wanted):
    """The line of JSON is there, says what to install, and answers the other questions."""
    for name in [name for name in sys.modules if name == "contract.versions.bucket" or name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # which is how an import fails
    monkeypatch.setenv(variable, value)
    assert main(["check"]) == 1
    printed = capsys.readouterr()
    checks = {each["name"]: each for each in json.loads(printed.out)["checks"]}
    assert list(checks) == ["settings", "repository", "cache", "label_studio"]
    assert [name for name, each in checks.items() if not each["ok"]] == ["repository"]
    assert wanted in checks["repository"]["detail"]
    assert wanted in printed.err


def test_wrong_settings_are_reported_all_at_once(monkeypatch, capsys):
    """The line of JSON is there even then, and the exit status says that something is wrong."""
    monkeypatch.setenv("LABELNEXT_THREADS", "none")
    monkeypatch.setenv("LABELNEXT_POLL_S", "-1")
    assert main(["check"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    [found] = report["checks"]
    assert found["name"] == "settings"
    assert "LABELNEXT_THREADS" in found["detail"]
    assert "LABELNEXT_POLL_S" in found["detail"]
