"""A watch of several projects."""

import re
import signal

import pytest
from filelock import FileLock

from contract.errors import ConfigError
from contract.versions.repository import Repository
from contract.versions.training_requests import find_requests, submit_request
from tests.trainer.watching.watched import refuse, run_watch, stop
from trainer.watching.processes import Stopped, Supervisor

BOTH = ((5,), (7,))


def test_each_project_has_its_own_model_and_prefixed_log_lines(two_projects, caplog):
    studios = two_projects()
    for studio in studios.projects.values():
        studio.label(25)
    status, _, log = run_watch(studios, caplog, projects=BOTH, rounds=1)
    assert status == 0
    assert studios.commands == [
        (command, number, f"project-{number}") for number in (5, 7) for command in ("run", "rank")
    ]
    versions = [studio.repository.current() for studio in studios.projects.values()]
    assert [studio.project["model_version"] for studio in studios.projects.values()] == versions
    assert log[:2] == [
        f"watching project {number} for model project-{number}: a round after 20 new or changed labels"
        for number in (5, 7)
    ]
    for number, version, line in zip((5, 7), versions, log[2:], strict=True):
        assert line.startswith(f"project {number}: 25 new labels (threshold 20): trained {version} on 25 labels")


def test_a_request_trains_only_its_project(two_projects, caplog):
    """Whether the server that submitted it knew the model, or only the project."""
    studios = two_projects()
    for studio in studios.projects.values():
        studio.label(25)
    run_watch(studios, caplog, projects=BOTH, rounds=1)
    submit_request(studios.projects[7].repository, 7)
    submit_request(Repository(studios.models), 5, any_model=True)
    _, _, log = run_watch(studios, caplog, projects=BOTH, rounds=1)
    requested = [line.partition(": trained")[0] for line in log if "Start Training" in line]
    assert requested == [f"project {number}: Start Training was pressed" for number in (5, 7)]
    assert find_requests(studios.projects[5].repository) == find_requests(studios.projects[7].repository) == []


def test_a_failing_project_does_not_delay_the_other(two_projects, caplog):
    studios = two_projects()
    studios.projects[5].before = lambda request: "/projects/" in request.path and refuse(502)
    studios.projects[7].label(25)
    studios.projects[7].outcomes = {"run": [(1, "no room")]}
    studios.projects[7].events[20] = stop
    _, _, lines = run_watch(studios, caplog, projects=BOTH)
    assert [command for command in studios.commands if command[0] == "run"] == [("run", 7, "project-7")] * 2
    log = "\n".join(lines)
    assert re.search(r"^project 5: .*502.*retrying$", log, re.MULTILINE)
    assert "\nproject 7: 25 new labels (threshold 20); training failed: no room" in log
    assert "\nproject 7: 25 new labels (threshold 20): trained" in log


def test_default_model_stays_with_its_project_when_another_joins(two_projects, caplog):
    studios = two_projects("default", "project-7")
    studios.projects[5].label(25)
    assert run_watch(studios, caplog, rounds=1)[0] == 0
    first = studios.projects[5].repository.current()
    studios.projects[5].label(25)
    studios.projects[7].label(25)
    run_watch(studios, caplog, projects=BOTH, rounds=1)
    assert studios.projects[5].repository.versions()[0] == first
    assert {(number, model) for _, number, model in studios.commands} == {(5, "default"), (7, "project-7")}


def test_projects_can_share_a_model(two_projects, caplog):
    studios = two_projects("pets", "pets")
    studios.projects[5].label(25)
    studios.projects[7].events[12] = stop
    run_watch(studios, caplog, projects=((5, "pets"), (7, "pets")))
    version = Repository(studios.models, "pets").current()
    assert [studio.project["model_version"] for studio in studios.projects.values()] == [version] * 2
    assert ("rank", 7, "pets") in studios.commands


def test_rejects_a_model_that_another_watch_uses(two_projects, caplog):
    studios = two_projects("pets", "cars")
    studios.models.mkdir()
    with (
        FileLock(studios.models / ".cars.watch.lock"),
        pytest.raises(ConfigError, match="another watch is running for model 'cars'"),
    ):
        run_watch(studios, caplog, projects=((5, "pets"), (7, "cars")))
    assert studios.commands == []


def test_an_interruption_is_logged_with_the_project(two_projects, caplog, monkeypatch):
    studios = two_projects()
    studios.projects[7].label(25)

    def interrupt_training(_, command, options):
        if command == "run":
            raise Stopped(signal.SIGTERM)
        return studios.execute(command, options)

    monkeypatch.setattr(Supervisor, "run", interrupt_training)
    _, _, log = run_watch(studios, caplog, projects=BOTH)
    assert log[-1] == ("SIGTERM: the watch has ended; project 7: training was interrupted, and nothing was published")
