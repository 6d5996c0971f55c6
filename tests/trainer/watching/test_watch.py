"""The watch with a Label Studio of a few answers, and commands in its own process that do as they are told."""

import errno
import logging
import os
import re
import signal
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from unittest.mock import Mock

import pytest
from filelock import FileLock

from bench.harness.hosts import host
from contract.errors import ConfigError, LabelnextError, NothingPublished
from contract.label_studio import RetryPolicy
from contract.labelconfig import parse_label_config
from contract.versions.repository import Repository
from contract.versions.results import ProjectState, TrainingRecord
from contract.versions.training_requests import find_requests, submit_request
from tests.trainer.studio import TOKEN, Aborted, Studio, label_config
from tests.versions import publish
from trainer.__main__ import COMMANDS
from trainer.pruning import prune
from trainer.ranking.options import RankingOptions, RankOptions
from trainer.settings import Environment, Source, Training
from trainer.watching.processes import Outcome, Stopped, Supervisor
from trainer.watching.rounds import WatchedProject, WatchOptions
from trainer.watching.watch import watch
from trainer.watching.watcher import _Backoff, _describe_stages

POLL_S = 0.01


class Watched(Studio):
    """A project of 100 tasks, what happens to it at which look, and what the commands come to."""

    def __init__(self, models, number=5, model="default"):
        super().__init__(tasks=100)
        self.models = models
        self.number = number
        self.model = model
        self.webhooks[9] = {"id": 9, "url": "http://localhost:9090/webhook", "headers": {}}
        self.looks = 0
        self.counted = 0
        """How often annotations were asked for."""
        self.events = {}
        """Look to what happens before it is answered."""
        self.plan = {}
        """Command to how it ends the next times: what its report says besides, or status and reason."""
        self.ran = []
        self.prepared = []
        """Commands, and after how many were run."""

    def label(self, count):
        for _ in range(count):
            self.annotate(min(self.tasks, key=lambda task: len(self.tasks[task]["annotations"])), "cat")

    def labelled(self):
        return [task for task in self.tasks if self.tasks[task]["annotations"]]

    def edit(self, count):
        for task in self.labelled()[:count]:
            super().edit(task)

    def delete(self, count):
        for task in self.labelled()[:count]:
            del self.tasks[task]["annotations"][0]

    def open(self):
        """As when somebody looks at a labelled task, and a prediction is fetched for it."""
        self.tasks[self.labelled()[0]]["updated_at"] = self.moment()

    def resize(self, tasks):
        while len(self.tasks) > tasks:
            self.delete_task(max(self.tasks))
        while len(self.tasks) < tasks:
            self.add_task()

    def name(self, *labels):
        self.project["label_config"] = label_config(*labels)

    def route(self, request):
        if request.path.startswith("/api/tasks/"):
            if "fields=all" in request.path:
                self.counted += 1
            else:
                self.looks += 1
                self.events.get(self.looks, lambda: None)()
        return super().route(request)

    @property
    def repository(self):
        return Repository(self.models, self.model)

    def do(self, command, options):
        """Stand in for `Supervisor.run`."""
        self.ran.append((command, options))
        step = self.plan.get(command) and self.plan[command].pop(0)
        if isinstance(step, tuple):
            return Outcome(step[0], {}, step[1], 0.0)
        try:
            return Outcome(0, {**getattr(self, command)(options), **(step or {})}, "", 0.0)
        except LabelnextError as err:
            return Outcome(1, {}, str(err), 0.0)

    def run(self, _):
        newest = max((self.tasks[task]["updated_at"] for task in self.labelled()), default="")
        seen = ProjectState(self.number, self.counters()["total_annotations_number"], newest)
        labels = parse_label_config(self.project["label_config"])[0].labels
        created_at, training = datetime.now(UTC).isoformat(), TrainingRecord(project=seen)
        described = {"labels": labels, "control": "label", "created_at": created_at, "training": training}
        name = publish(self.repository, b"x", **described).name
        return {"version": name, "labels": seen.annotations, "macro_f1": 0.713, "advice": "too early to say"}

    def rank(self, _):
        try:
            self.project["model_version"] = version = self.repository.current()
        except NothingPublished:
            self.project["model_version"], version = f"cold-start-{self.model}", None
        return {"version": version, "strategy": "margin", "tasks": len(self.tasks), "waiting": len(self.tasks)}

    def prune(self, options):
        return asdict(prune(self.repository, newest=options["keep"]))


@pytest.fixture(autouse=True)
def _in_no_time(monkeypatch):
    monkeypatch.setattr("contract.label_studio.RETRY_POLICY", RetryPolicy(total_s=0.0))
    monkeypatch.setattr("trainer.watching.watcher._LONGEST_POLL_S", 0.1)


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """Stops the watch at its 60th look, should nothing else."""
    state = Watched(tmp_path / "models")
    monkeypatch.setattr(Supervisor, "run", lambda _, command, options: state.do(command, options))
    monkeypatch.setattr(Supervisor, "prepare", lambda _, command: state.prepared.append((command, len(state.ran))))
    state.events[60] = stop
    with host() as server:
        server.default = state.answer
        state.url, state.over, state.requests = server.url, server.stopping, server.requests
        yield state


def refuse(status):
    raise Aborted(status)


def stop(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def watch_it(studio, caplog, *, environment=None, projects=((5,),), **options):
    """Watch until the end, and return the exit status, the names of commands that ran and the lines that were said."""
    environment = environment or environment_of(studio)
    caplog.set_level(logging.INFO, "trainer")
    wanted = WatchOptions(tuple(WatchedProject(*each) for each in projects), poll_s=POLL_S, **options)
    run, rank = {**asdict(Training(epochs=3)), "control": "-x"}, asdict(RankingOptions(batch_size=50))
    status = watch(wanted, environment, run=run, rank=rank)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("trainer")]
    return status, [command for command, *_ in studio.ran], said


def environment_of(studio, **fields):
    return Environment(models=studio.models, label_studio_url=studio.url, label_studio_token=TOKEN, **fields)


@pytest.fixture
def trained(studio, caplog):
    """A project that has had its first round, of 30 labels."""
    studio.label(30)
    watch_it(studio, caplog, rounds=1)
    return studio


def test_enough_labels_start_a_round(studio, caplog):
    studio.label(9)
    studio.events |= {5: lambda: studio.label(1), 8: lambda: studio.label(10)}
    status, ran, said = watch_it(studio, caplog, rounds=1, labels=20)
    assert (status, ran) == (0, ["rank", "run", "rank"])
    (source, training), [ranking] = (COMMANDS[name].values(options) for name, options in studio.ran[1:])
    assert (source, training) == (Source(5, control="-x"), Training(epochs=3))
    assert ranking == RankOptions(5, batch_size=50)
    version = studio.repository.current()
    assert said[1].startswith("nothing is published yet: ranked 100 tasks by margin; ")
    assert said[-1].startswith(
        f"20 new labels (20 asked for): trained {version} on 20 labels, macro-F1 0.71; ranked 100 tasks by margin; "
        "too early to say; "
    )
    assert len(said) == 3
    assert set(studio.prepared) == {("run", 1), ("rank", 1)}
    assert studio.prepared[-1] == ("rank", 1)
    assert 1 <= studio.prepared.count(("run", 1)) <= 3


@pytest.mark.slow
def test_a_watch_that_is_started_again_goes_on_where_it_was(trained, caplog):
    first = trained.repository.current()
    trained.label(19)
    trained.events = {trained.looks + 20: stop}
    _, ran, said = watch_it(trained, caplog, rounds=1)
    assert ran == ["run", "rank", "rank"]  # the former watch may have ended before it had ranked all
    assert said[-2].startswith("the watch begins: ranked 100 tasks")
    trained.label(1)
    _, ran, _ = watch_it(trained, caplog, rounds=1)
    assert ran[3:] == ["run", "rank"]
    trained.repository.rollback(first)
    trained.events = {trained.looks + 10: stop}
    _, ran, _ = watch_it(trained, caplog)
    assert ran[5:] == ["rank"]
    assert trained.project["model_version"] == first


def test_after_some_minutes_any_change_starts_a_round(trained, caplog):
    trained.open()
    trained.events = {trained.looks + 10: lambda: trained.edit(1)}
    _, ran, said = watch_it(trained, caplog, rounds=1, minutes=1e-4)
    assert ran == ["run", "rank", "rank", "run", "rank"]
    assert "1 edited label in 0 min" in said[-1]
    assert trained.looks > 10


def test_what_does_not_suffice_starts_nothing_and_edited_and_deleted_labels_count_like_new_ones(trained, caplog):
    counted = []

    def change_nearly_enough():
        trained.edit(19)
        trained.edit(19)
        trained.label(1)
        trained.tasks[31]["annotations"].clear()

    def change_enough():
        counted.append(trained.counted)
        trained.delete(4)
        trained.label(1)

    steps = (trained.open, change_nearly_enough, change_enough)
    trained.events = {trained.looks + 4 * number: step for number, step in enumerate(steps, 1)}
    _, ran, said = watch_it(trained, caplog, rounds=1, labels=20)
    assert ran == ["run", "rank", "rank", "run", "rank"]
    assert said[-1].startswith("1 new label, 15 edited, 4 deleted (20 asked for)")
    assert counted == [2]


@pytest.mark.parametrize(
    ("err", "message"),
    [
        (KeyError("a bug"), "an unforeseen KeyError 'a bug'; looking again"),
        (OSError(errno.EIO, "the volume is away"), "[Errno 5] the volume is away; looking again"),
    ],
)
def test_what_fails_in_a_look_or_a_round_does_not_end_the_watch(studio, caplog, monkeypatch, err, message):
    studio.label(30)
    real, failing = Repository.current, iter([False, True, True])  # the look finds it there, the round does not

    def current(repository):
        if next(failing, False):
            raise err
        return real(repository)

    monkeypatch.setattr(Repository, "current", current)
    status, ran, said = watch_it(studio, caplog, rounds=1)
    assert (status, ran) == (0, ["run", "rank"])
    [record] = [record for record in caplog.records if "looking again" in record.getMessage()]
    assert record.getMessage() == message
    assert bool(record.exc_info) == isinstance(err, KeyError)
    assert "watching project 5 again" in said


@pytest.mark.parametrize("keep", [None, 2, "all"])
def test_of_the_versions_the_newest_stay_after_each_round(studio, caplog, keep):
    for _ in range(11):
        publish(studio.repository, b"1")
    studio.label(30)
    _, ran, _ = watch_it(studio, caplog, rounds=1, **({"keep": keep} if keep else {}))
    left = {None: 10, 2: 2, "all": 12}[keep]
    assert studio.repository.versions() == studio.repository.history()[-left:]
    assert ran[-1] == ("rank" if keep == "all" else "prune")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "why"),
    [({4: 107, 5: 114, 6: 121}, "21 more tasks: ranked 121 tasks"), ({4: 40, 8: 60}, "20 more tasks: ranked 60 tasks")],
    ids=["more", "in place of deleted ones"],
)
def test_new_tasks_are_ranked_when_they_have_all_come(studio, caplog, tasks, why):
    studio.label(30)
    studio.events |= {look: partial(studio.resize, count) for look, count in tasks.items()} | {20: stop}
    _, ran, said = watch_it(studio, caplog)
    assert ran == ["run", "rank", "rank"]
    assert said[-2].startswith(why)


def test_an_empty_project_is_left_alone_and_a_look_is_two_small_requests(studio, caplog):
    studio.resize(0)
    studio.events = {20: stop}
    assert watch_it(studio, caplog)[1] == []
    assert 40 <= len(studio.requests) <= 45


def test_a_request_or_other_classes_start_a_round_without_a_new_label(trained, caplog):
    for project in (5, 6, None):
        submit_request(trained.repository, project)
    _, ran, said = watch_it(trained, caplog, rounds=1)
    assert ran == ["run", "rank", "run", "rank"]
    assert said[-1].startswith("Start Training was pressed: trained")
    assert [request.project for request in find_requests(trained.repository)] == [6]
    trained.name("cat", "dog", "cow")
    _, ran, said = watch_it(trained, caplog, rounds=1)
    assert ran[4:] == ["run", "rank"]
    assert said[-1].startswith("the labelling config has changed (new: cow): trained")


def test_a_request_that_failed_for_a_reason_that_passes_is_tried_again(studio, caplog):
    submit_request(studio.repository, 5)
    studio.plan = {"run": [(1, "expected to write, got No space left on device"), (-9, "killed by SIGKILL")]}
    _, ran, said = watch_it(studio, caplog, rounds=1)
    assert ran.count("run") == 3
    failures = [line for line in said if "nothing was trained" in line]
    assert "Start Training was pressed, but nothing was trained: expected to write, got No space left" in failures[0]
    assert "killed by SIGKILL; again in" in failures[1]
    assert find_requests(studio.repository) == []


@pytest.mark.slow
def test_who_presses_again_does_not_wait_for_the_next_attempt(studio, caplog, monkeypatch):
    fail = lambda self, *, least_s=0.0: setattr(self, "_until", 1e18) or 1e18  # noqa: E731 - for ever
    monkeypatch.setattr("trainer.watching.watcher._Backoff.fail", fail)
    submit_request(studio.repository, 5)
    studio.plan = {"run": [(1, "no room")]}
    studio.events[20] = lambda: submit_request(studio.repository, 5)
    _, ran, _ = watch_it(studio, caplog, rounds=1)
    assert ran.count("run") == 2
    assert 20 <= studio.looks < 60


@pytest.mark.slow
def test_a_request_that_cannot_be_removed_is_answered_once(studio, caplog, monkeypatch):
    """The trainer may not be allowed to write where servers do."""
    monkeypatch.setattr("trainer.watching.watcher.remove_request", Mock(side_effect=PermissionError("read-only")))
    for project in (None, 5):
        submit_request(studio.repository, project)
    studio.events = {10: lambda: submit_request(studio.repository, 5), 30: stop}
    _, ran, said = watch_it(studio, caplog)
    assert ran.count("run") == 2  # for those that lay there, and for the one that was made anew
    assert any("cannot be removed" in line for line in said)


@pytest.mark.slow
def test_labels_that_cannot_be_trained_on_wait_for_others(studio, caplog):
    studio.label(20)
    studio.plan = {"run": [(3, "expected labelled images of at least 2 classes, got 20 of 1")] * 2}
    studio.events |= {20: lambda: submit_request(studio.repository, 5), 40: lambda: studio.label(1)}
    _, ran, said = watch_it(studio, caplog, rounds=1)
    assert ran == ["run", "rank", "run", "run", "rank"]
    assert "got 20 of 1; waiting for other labels" in said[1]
    assert studio.looks >= 40
    assert find_requests(studio.repository) == []


def test_a_ranking_that_failed_is_tried_again_alone(studio, caplog):
    training, ranking = {"labels": 1.0, "fit": 2.25}, {"labels": 0.5, "import": 9.0, "clear": 30.0}
    took = _describe_stages(training, ranking, seconds=47.5)
    assert took == "round 17.5 s: start 4.8, labels 1.5, fit 2.2, import 9.0; clear 30.0 s"
    studio.label(20)
    studio.plan = {"run": [{"stages": training}], "rank": [(1, "no server answers")] * 2 + [{"stages": ranking}]}
    _, ran, said = watch_it(studio, caplog, rounds=1)
    assert ran == ["run", "rank", "rank", "rank"]
    assert "on 20 labels, macro-F1 0.71; not ranked: no server answers; again in" in said[1]
    assert "on 20 labels, macro-F1 0.71; ranked 100 tasks by margin" in said[-1]
    assert "labels 1.5, fit 2.2, import 9.0; clear 30.0 s" in said[-1]


@pytest.mark.slow
def test_images_that_could_not_be_scored_are_tried_again_without_a_new_label(studio, caplog, monkeypatch):
    monkeypatch.setattr("trainer.watching.watcher._RETRY_S", 0.001)
    waits = []
    fail = _Backoff.fail
    monkeypatch.setattr("trainer.watching.watcher._Backoff.fail", lambda self: waits.append(fail(self)) or waits[-1])
    studio.plan = {"rank": [{"failed": failed} for failed in (7, 7, 7, 3, 3)]}
    _, ran, said = watch_it(studio, caplog, labels=1000)
    assert ran == ["rank"] * 6
    assert waits == [0.001, 0.002, 0.004, 0.001, 0.002]
    assert said[2].startswith("7 images that could not be scored: ranked 100 tasks by margin; 7 images could not be")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["labels", "config"])
def test_a_version_that_does_not_know_the_projects_labels_is_not_asked_again(studio, caplog, change):
    """Until labels for the project's own have led to one that does, or its labels may be those that it knows."""
    publish(studio.repository, b"of another project")
    studio.plan = {"rank": [(3, "expected the labels of version 1")]}
    studio.events |= {30: lambda: studio.label(20) if change == "labels" else studio.name("a", "b"), 45: stop}
    _, ran, said = watch_it(studio, caplog)
    assert ran == (["rank", "run", "rank"] if change == "labels" else ["rank", "rank"])
    why = "the watch begins; not ranked: expected the labels of version 1; waiting for a version that knows them"
    assert said[1] == why


@pytest.mark.slow
@pytest.mark.parametrize(("status", "message"), [(502, "502"), (401, "refuses the token")])
def test_a_label_studio_that_does_not_answer_is_said_once_and_asked_again(studio, caplog, status, message):
    studio.events |= dict.fromkeys(range(2, 17), lambda: refuse(status))
    studio.events[30] = stop
    _, ran, said = watch_it(studio, caplog)
    assert ran == ["rank"]
    assert sum(message in line and "looking again" in line for line in said) == 1
    assert said[-2] == "watching project 5 again"
    assert TOKEN not in "".join(said)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_the_watch_also_while_label_studio_hangs(studio, caplog, number, status):
    def hang():
        stop(number)
        studio.over.wait(600)  # longer than the test may take

    studio.events[3] = hang
    found, _, said = watch_it(studio, caplog)
    assert found == status
    assert said[-1] == f"{number.name}: the watch is over; nothing was under way"


def test_webhooks_are_given_the_secret_and_keep_nothing_waiting_while_they_are_out_of_reach(studio, caplog):
    studio.label(30)
    studio.before = lambda request: refuse(403) if request.path.startswith("/api/webhooks") else None

    def mend():
        studio.before = lambda request: None
        studio.webhooks[10] = {**studio.webhooks[9], "id": 10, "headers": {}}

    studio.events |= {10: mend, 13: stop}
    environment = environment_of(studio, webhook_secret="hush", server="http://localhost:9090")
    _, ran, said = watch_it(studio, caplog, environment=environment)
    assert ran == ["run", "rank"]
    assert sum("cannot be given the secret" in line for line in said) == 1
    assert [each["headers"] for each in studio.webhooks.values()] == [{"Authorization": "Bearer hush"}] * 2
    assert "hush" not in "".join(said)


# ---- several projects

BOTH = ((5,), (7,))


class Both:
    """Two projects of one Label Studio, 5 and 7, each of which answers as if it were the only one."""

    def __init__(self, models, names):
        self.models = models
        self.projects = {number: Watched(models, number, name) for number, name in names.items()}
        self.ran = []
        """Command, project and model."""

    def answer(self, handler, request):
        [number, *_] = re.findall(r"projects?[/=](\d+)", request.path) or ["5"]
        path = re.sub(r"(projects?[/=])\d+", r"\g<1>5", request.path)
        self.projects[int(number)].answer(handler, replace(request, path=path))

    def do(self, command, options):
        mine = {each.model: number for number, each in self.projects.items()}
        number = options.get("project", mine.get(options["model"]))
        self.ran.append((command, number, options["model"]))
        return self.projects[number].do(command, options)


@pytest.fixture
def both(tmp_path, monkeypatch):
    """Two projects, given the models that theirs are expected to be; the watch ends at the 60th look at one."""
    monkeypatch.setattr(Supervisor, "prepare", lambda *_: None)
    with host() as server:

        def make(first="project-5", second="project-7"):
            state = Both(tmp_path / "models", {5: first, 7: second})
            monkeypatch.setattr(Supervisor, "run", lambda _, command, options: state.do(command, options))
            for studio in state.projects.values():
                studio.events[60] = stop
            server.default, state.url = state.answer, server.url
            return state

        yield make


def test_two_projects_have_a_model_each_and_lines_of_their_own(both, caplog):
    """Start Training is for the project where it was pressed, whether the server knew the model or only the project."""
    both = both()
    for studio in both.projects.values():
        studio.label(25)
    status, _, said = watch_it(both, caplog, projects=BOTH, rounds=1)
    assert status == 0
    assert both.ran == [(command, number, f"project-{number}") for number in (5, 7) for command in ("run", "rank")]
    versions = [studio.repository.current() for studio in both.projects.values()]
    assert [studio.project["model_version"] for studio in both.projects.values()] == versions
    assert said[:2] == [
        f"watching project {number} for model project-{number}: a round after 20 new or changed labels"
        for number in (5, 7)
    ]
    for number, version, line in zip((5, 7), versions, said[2:], strict=True):
        assert line.startswith(f"project {number}: 25 new labels (20 asked for): trained {version} on 25 labels")
    submit_request(both.projects[7].repository, 7)
    submit_request(Repository(both.models), 5, any_model=True)
    _, _, said = watch_it(both, caplog, projects=BOTH, rounds=1)
    pressed = [line.partition(": trained")[0] for line in said if "Start Training" in line]
    assert pressed == [f"project {number}: Start Training was pressed" for number in (5, 7)]
    assert find_requests(both.projects[5].repository) == find_requests(both.projects[7].repository) == []


def test_a_project_that_fails_holds_up_no_other(both, caplog):
    both = both()
    both.projects[5].before = lambda request: "/projects/" in request.path and refuse(502)
    both.projects[7].label(25)
    both.projects[7].plan = {"run": [(1, "no room")]}
    both.projects[7].events[20] = stop
    _, _, said = watch_it(both, caplog, projects=BOTH)
    assert [ran for ran in both.ran if ran[0] == "run"] == [("run", 7, "project-7")] * 2
    told = "\n".join(said)
    assert re.search(r"^project 5: .*502.*looking again$", told, re.MULTILINE)
    assert "\nproject 7: 25 new labels (20 asked for), but nothing was trained: no room" in told
    assert "\nproject 7: 25 new labels (20 asked for): trained" in told


def test_a_project_goes_on_with_the_model_that_was_trained_on_it(both, caplog):
    """When a second one joins: LABELNEXT_MODEL is not taken from the first."""
    both = both("default", "project-7")
    both.projects[5].label(25)
    assert watch_it(both, caplog, rounds=1)[0] == 0
    first = both.projects[5].repository.current()
    both.projects[5].label(25)
    both.projects[7].label(25)
    watch_it(both, caplog, projects=BOTH, rounds=1)
    assert both.projects[5].repository.versions()[0] == first
    assert {(number, model) for _, number, model in both.ran} == {(5, "default"), (7, "project-7")}


def test_models_may_be_named_and_shared_and_are_refused_while_another_watch_works_for_one(both, caplog):
    both = both("pets", "pets")
    both.models.mkdir()
    with (
        FileLock(both.models / ".cars.watch.lock"),
        pytest.raises(ConfigError, match="another watch is at work for model 'cars'"),
    ):
        watch_it(both, caplog, projects=((5, "pets"), (7, "cars")))
    assert both.ran == []
    both.projects[5].label(25)
    both.projects[7].events[12] = stop
    watch_it(both, caplog, projects=((5, "pets"), (7, "pets")))
    version = Repository(both.models, "pets").current()
    assert [studio.project["model_version"] for studio in both.projects.values()] == [version] * 2
    assert ("rank", 7, "pets") in both.ran


def test_what_a_signal_cuts_short_is_told_of_the_project_that_was_at_work(both, caplog, monkeypatch):
    both = both()
    both.projects[7].label(25)

    def interrupted(_, command, options):
        if command == "run":
            raise Stopped(signal.SIGTERM)
        return both.do(command, options)

    monkeypatch.setattr(Supervisor, "run", interrupted)
    _, _, said = watch_it(both, caplog, projects=BOTH)
    assert said[-1] == "SIGTERM: the watch is over; project 7: training was abandoned, and nothing published"
