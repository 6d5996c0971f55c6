"""Cached lists of tasks equal Label Studio's lists, with few requests."""

import json
import stat
from urllib.parse import parse_qs, urlsplit

import pytest

from contract.label_studio import LabelStudioClient
from trainer.labelstudio import task_lists
from trainer.labelstudio.task_lists import list_annotated, list_unlabelled
from trainer.labelstudio.tasks import annotated_tasks, unlabelled_tasks

TASKS = 40


@pytest.fixture
def pets(pets, tmp_path):
    """A project with three labelled tasks, and a cache folder that does not exist yet."""
    while len(pets.tasks) < TASKS:
        pets.add_task()
    pets.folder = tmp_path / "cache" / "tasks" / "5"
    pets.path = pets.folder / "unlabelled.json"
    for task in (3, 4, 5):
        pets.annotate(task, "cat")
    return pets


SUBTRACT_OVERLAP = task_lists._subtract_overlap
LISTED_AT = [""]


@pytest.fixture(autouse=True)
def _no_overlap(monkeypatch):
    """Remove the overlap, so that only later changes are requested."""
    monkeypatch.setattr(task_lists, "_subtract_overlap", lambda moment: LISTED_AT[0] if moment else "")


def read(pets, list_tasks=list_unlabelled):
    """List tasks, compare with the full list, and return the number of tasks in Label Studio's replies."""
    requests_before = len(pets.requests)
    tasks = list_tasks(pets.client, pets.folder)
    sent = sum(count_sent(pets, request) for request in pets.requests[requests_before:])
    expected = unlabelled_tasks if list_tasks is list_unlabelled else annotated_tasks
    assert tasks == list(expected(pets.client))
    LISTED_AT[0] = pets.timestamp()
    return sent


def count_sent(pets, request):
    parts = urlsplit(request.path)
    if not parts.path.startswith("/api/tasks"):
        return 0
    return len(pets.list_tasks({name: values[0] for name, values in parse_qs(parts.query).items()})["tasks"])


def lists_all(sent):
    return sent >= TASKS - 10


def test_only_changed_unlabelled_tasks_are_requested(pets):
    assert lists_all(read(pets))
    assert read(pets) <= 2
    pets.annotate(7, "cat")
    pets.annotate(8, "dog", cancelled=True)
    pets.tasks[3]["annotations"].clear()
    pets.tasks[3]["updated_at"] = pets.timestamp()
    pets.add_task()
    pets.tasks[9].update(data={"image": "http://images/other.png"}, updated_at=pets.timestamp())
    assert read(pets) <= 2 + 5
    assert read(pets) <= 2


def test_only_changed_annotated_tasks_are_requested(pets):
    for task in range(6, 31):
        pets.annotate(task, "cat")
    pets.annotate(2, "cat", cancelled=True)
    assert read(pets, list_annotated) >= 28
    assert read(pets, list_annotated) <= 2
    pets.annotate(32, "dog")
    pets.edit(3)
    pets.tasks[4]["annotations"].clear()
    pets.tasks[4]["updated_at"] = pets.timestamp()
    pets.annotate(1, "dog", cancelled=True)
    pets.annotate(2, "dog")
    assert read(pets, list_annotated) <= 2 + 5
    assert read(pets) >= TASKS - 35
    assert read(pets, list_annotated) <= 2


def test_all_tasks_are_listed_after_deletion_of_an_annotation(pets):
    pets.annotate(3, "dog")
    read(pets, list_annotated)
    pets.tasks[3]["annotations"].pop()
    assert read(pets, list_annotated) >= 3


@pytest.mark.parametrize(
    "change",
    [
        lambda pets: pets.delete_task(10),
        lambda pets: (pets.delete_task(11), pets.add_task()),
        lambda pets: pets.tasks[4]["annotations"].clear(),
        lambda pets: pets.project.update(maximum_annotations=2),
    ],
    ids=["task deleted", "task deleted and added", "annotation deleted", "settings changed"],
)
def test_all_tasks_are_listed_after_changes_without_a_time(pets, change):
    """Deletions show only in the counts; a changed overlap setting changes no task."""
    read(pets)
    change(pets)
    assert lists_all(read(pets))
    assert read(pets) <= 2


@pytest.mark.parametrize("later_s", [25 * 3600, -10])
def test_all_tasks_are_listed_once_a_day(pets, monkeypatch, later_s):
    """Or if the local clock was set back."""
    read(pets)
    now = task_lists.time.time()
    monkeypatch.setattr(task_lists.time, "time", lambda: now + later_s)
    assert lists_all(read(pets))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"tasks": {"x": 1}}'])
def test_an_invalid_file_is_ignored(pets, content):
    pets.path.parent.mkdir(parents=True)
    pets.path.write_bytes(content)
    assert lists_all(read(pets))
    assert read(pets) <= 2


def test_files_are_readable_only_by_the_owner(pets):
    """References may contain signatures."""
    read(pets)
    assert stat.S_IMODE(pets.path.stat().st_mode) == 0o600
    assert json.loads(pets.path.read_bytes())["tasks"]["1"] == {"data": pets.tasks[1]["data"]}


def test_long_lists_are_not_cached(pets, monkeypatch):
    read(pets)
    monkeypatch.setattr(task_lists, "_MAX_BYTES", 100)
    read(pets)
    assert not pets.path.exists()


@pytest.mark.parametrize("missing", ["cache folder", "server time"])
def test_all_tasks_are_listed_without_cache_or_server_time(pets, monkeypatch, missing):
    if missing == "cache folder":
        pets.path.parent.parent.mkdir(parents=True)
        pets.path.parent.touch()
    else:
        monkeypatch.setattr(LabelStudioClient, "date", None)
    for _ in range(2):
        assert lists_all(read(pets))


def test_the_last_ten_seconds_are_requested_again():
    """The time of a change is that of its start, so it may become visible later."""
    assert SUBTRACT_OVERLAP("2026-01-02T00:01:00+00:00") == "2026-01-02T00:00:50.000000Z"
    assert SUBTRACT_OVERLAP("") == ""
