"""A watched project in a fake Label Studio, and stand-ins for the commands `run`, `rank` and `prune`."""

import logging
import os
import re
import signal
from dataclasses import asdict, replace
from datetime import UTC, datetime

from contract.errors import LabelnextError, NothingPublished
from contract.labelconfig import parse_label_config
from contract.versions.repository import Repository
from contract.versions.results import ProjectState, TrainingRecord
from tests.trainer.studio import TOKEN, Aborted, Studio
from tests.trainer.studio_project import label_config
from tests.versions import publish
from trainer.pruning import prune
from trainer.ranking.options import RankingOptions
from trainer.settings import Environment, Training
from trainer.watching.processes import Outcome
from trainer.watching.rounds import WatchedProject, WatchOptions
from trainer.watching.watch import watch

POLL_S = 0.01


class WatchedStudio(Studio):
    """A project of 100 tasks, with events at given polls and given outcomes of commands."""

    def __init__(self, models, number=5, model="default"):
        super().__init__(tasks=100)
        self.models = models
        self.number = number
        self.model = model
        self.webhooks[9] = {"id": 9, "url": "http://localhost:9090/webhook", "headers": {}}
        self.polls = 0
        self.annotation_lists = 0
        """Number of requests for annotations."""
        self.events = {}
        """Functions by the number of the poll before whose answer they are called."""
        self.outcomes = {}
        """Next outcomes by command: additions to the report, or status and error message."""
        self.commands = []
        """Commands that were run, with their options."""
        self.prepared = []
        """Prepared commands, with the number of commands run before."""

    def label(self, count):
        for _ in range(count):
            self.annotate(min(self.tasks, key=lambda task: len(self.tasks[task]["annotations"])), "cat")

    def labelled(self):
        return [task for task in self.tasks if self.tasks[task]["annotations"]]

    def edit_labels(self, count):
        for task in self.labelled()[:count]:
            self.edit(task)

    def delete_labels(self, count):
        for task in self.labelled()[:count]:
            del self.tasks[task]["annotations"][0]

    def open_labelled_task(self):
        """Update the time of a labelled task, as Label Studio does when it fetches a prediction for it."""
        self.tasks[self.labelled()[0]]["updated_at"] = self.timestamp()

    def resize(self, tasks):
        while len(self.tasks) > tasks:
            self.delete_task(max(self.tasks))
        while len(self.tasks) < tasks:
            self.add_task()

    def set_labels(self, *labels):
        self.project["label_config"] = label_config(*labels)

    def route(self, request):
        if request.path.startswith("/api/tasks/"):
            if "fields=all" in request.path:
                self.annotation_lists += 1
            else:
                self.polls += 1
                self.events.get(self.polls, lambda: None)()
        return super().route(request)

    @property
    def repository(self):
        return Repository(self.models, self.model)

    # ---- commands

    def execute(self, command, options):
        """Stand in for `Supervisor.run`."""
        self.commands.append((command, options))
        outcome = self.outcomes.get(command) and self.outcomes[command].pop(0)
        if isinstance(outcome, tuple):
            status, error = outcome
            return Outcome(status, {}, error, 0.0)
        try:
            return Outcome(0, {**getattr(self, command)(options), **(outcome or {})}, "", 0.0)
        except LabelnextError as err:
            return Outcome(1, {}, str(err), 0.0)

    def run(self, _):
        newest = max((self.tasks[task]["updated_at"] for task in self.labelled()), default="")
        state = ProjectState(self.number, self.statistics()["total_annotations_number"], newest)
        version = publish(
            self.repository,
            b"x",
            labels=parse_label_config(self.project["label_config"])[0].labels,
            control="label",
            created_at=datetime.now(UTC).isoformat(),
            training=TrainingRecord(project=state),
        )
        return {"version": version.name, "labels": state.annotations, "macro_f1": 0.713, "advice": "too early to say"}

    def rank(self, _):
        try:
            self.project["model_version"] = version = self.repository.current()
        except NothingPublished:
            self.project["model_version"], version = f"cold-start-{self.model}", None
        return {"version": version, "strategy": "margin", "tasks": len(self.tasks), "waiting": len(self.tasks)}

    def prune(self, options):
        return asdict(prune(self.repository, newest=options["keep"]))


class TwoProjects:
    """Projects 5 and 7 of one Label Studio."""

    def __init__(self, models, model_5, model_7):
        self.models = models
        self.projects = {5: WatchedStudio(models, 5, model_5), 7: WatchedStudio(models, 7, model_7)}
        self.commands = []
        """Command, project and model."""

    def answer(self, handler, request):
        """Let the project of a request answer it as project 5."""
        [number, *_] = re.findall(r"projects?[/=](\d+)", request.path) or ["5"]
        path = re.sub(r"(projects?[/=])\d+", r"\g<1>5", request.path)
        self.projects[int(number)].answer(handler, replace(request, path=path))

    def execute(self, command, options):
        """Stand in for `Supervisor.run`."""
        by_model = {project.model: number for number, project in self.projects.items()}
        number = options.get("project", by_model.get(options["model"]))
        self.commands.append((command, number, options["model"]))
        return self.projects[number].execute(command, options)


def refuse(status):
    raise Aborted(status)


def stop(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def run_watch(studio, caplog, *, environment=None, projects=((5,),), **options):
    """Watch until the end, and return the exit status, the names of all commands so far, and the lines of the log."""
    caplog.set_level(logging.INFO, "trainer")
    status = watch(
        WatchOptions(tuple(WatchedProject(*each) for each in projects), poll_s=POLL_S, **options),
        environment or make_environment(studio),
        run={**asdict(Training(epochs=3)), "control": "-x"},
        rank=asdict(RankingOptions(batch_size=50)),
    )
    log = [record.getMessage() for record in caplog.records if record.name.startswith("trainer")]
    return status, [command for command, *_ in studio.commands], log


def make_environment(studio, **settings):
    return Environment(models=studio.models, label_studio_url=studio.url, label_studio_token=TOKEN, **settings)
