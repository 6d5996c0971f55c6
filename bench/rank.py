"""What does ranking a pool take? `python -m bench.rank [--tasks 10000] [--image-size 112] [--strategy NAME]`.

A real Label Studio holds the tasks, their images come from a web server, and a server under gunicorn has seen all of
them before, as it has after a retrain of the head. Then `python -m trainer rank` runs once, as a user's:

    tasks_per_s   tasks over the whole command, from its start to its end
    stages        in seconds: import until Label Studio holds all predictions, switch until the project sorts by them
    peak_rss_mb   of the command, in MB (2**20 bytes)

Afterwards each task must have one prediction, and the label stream must serve the lowest score; otherwise the bench
fails.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.frame import print_table, read_options, report, say
from bench.hosts import image_host
from bench.load import Client, label_config, send, split
from bench.model import CACHE, small_images, trained, workplace
from bench.serving import serving
from contract.label_studio import LabelStudioClient
from demo.label_studio import LabelStudio, label_studio
from demo.processes import free_port
from demo.product import CHECKOUT
from trainer.ordering.strategies import DEFAULT_STRATEGY, STRATEGIES

_OPTIONS: Mapping[str, tuple[object, str]] = {
    "tasks": (10_000, "in the project"),
    "image_size": (112, "in pixels"),
    "labels": (300, "of the version"),
    "strategy": ((DEFAULT_STRATEGY, *(name for name in STRATEGIES if name != DEFAULT_STRATEGY)), "of the order"),
}
_TASKS_A_REQUEST = 100
_TASKS_AN_IMPORT = 2500


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the command."""

    summary: Mapping[str, Any]
    """Its last line."""
    seconds: float
    peak_rss_mb: float


def main() -> None:
    """Measure, print a table and one line of JSON."""
    options = read_options("rank", __doc__, _OPTIONS)
    subject = trained(image_size=options.image_size, labels=options.labels)
    manifest = subject.version.manifest
    images = small_images(options.tasks)
    with (
        image_host(images) as host,
        workplace(subject.version) as folder,
        tempfile.TemporaryDirectory(dir=CACHE, prefix=".label-studio-") as data,
        label_studio(Path(data), python=CHECKOUT / ".venv-label-studio" / "bin" / "python", port=free_port()) as studio,
    ):
        references = [host.reference(image) for image in images]
        project = _fill(studio.client(), references, manifest.labels)
        settings = {
            "LABELNEXT_ALLOWED_ORIGINS": host.url,
            "LABELNEXT_CACHE_DIR": str(folder / "features"),
            "LABELNEXT_POLL_S": "0.5",
        }
        with serving(folder / "models", log=folder / "server.log", settings=settings) as server:
            server.wait_until_ready(subject.version.name)
            warming = time.perf_counter()
            replies = send(Client(server.url, manifest.labels), split(references, _TASKS_A_REQUEST), clients=2)
            assert not any(reply.failed for reply in replies), "some images could not be scored"
            say(f"{len(references)} images scored for the first time in {time.perf_counter() - warming:.0f} s")
            run = _rank(project, options.strategy, studio=studio, server=server.url, folder=folder)
            server_mb = server.peak_rss_mb()
        _check(studio.client(), project, run.summary, options.tasks)
    result = {
        "tasks_per_s": options.tasks / run.seconds,
        "seconds": run.seconds,
        "stages": run.summary["stages"],
        "peak_rss_mb": run.peak_rss_mb,
        "server_peak_rss_mb": server_mb,
        "audit": run.summary["audit"],
        "near_duplicates": run.summary["near_duplicates"],
    }
    steps = {**run.summary["stages"], "all of it": run.seconds}
    print_table([{"step": step, "seconds": seconds} for step, seconds in steps.items()])
    report("rank", options, subject, result)


def _fill(session: LabelStudioClient, references: Sequence[str], labels: Sequence[str]) -> int:
    """Make a project with a task for each image, and return its number."""
    started = time.perf_counter()
    body = {"title": "A pool", "label_config": label_config(labels)}
    project = int(session.post("/api/projects", body)["id"])
    for portion in split(references, _TASKS_AN_IMPORT):
        session.post(f"/api/projects/{project}/import", [{"image": reference} for reference in portion])
    say(f"{len(references)} tasks imported into Label Studio in {time.perf_counter() - started:.0f} s")
    return project


def _rank(project: int, strategy: str, *, studio: LabelStudio, server: str, folder: Path) -> Run:
    """Run the command in a process of its own, and take its memory from the system when it has ended."""
    environment = {
        "LABELNEXT_MODELS": str(folder / "models"),
        "LABELNEXT_CACHE": str(folder / "cache"),
        "LABELNEXT_LABEL_STUDIO_URL": studio.url,
        "LABELNEXT_LABEL_STUDIO_TOKEN": studio.token,
        "LABELNEXT_SERVER": server,
    }
    command = [sys.executable, "-m", "trainer", "rank", "--project", str(project), "--strategy", strategy]
    started = time.perf_counter()
    with (folder / "summary").open("w+b") as output:
        process = subprocess.Popen(command, cwd=CHECKOUT, env={**os.environ, **environment}, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, f"trainer rank ended with status {process.returncode}; its words are above"
        output.seek(0)
        summary = json.loads(output.read().splitlines()[-1])
    return Run(summary, seconds, round(usage.ru_maxrss / 1024, 1))


def _check(session: LabelStudioClient, project: int, summary: Mapping[str, Any], tasks: int) -> None:
    assert summary["tasks"] == tasks, f"{tasks} tasks were to be ranked, not {summary['tasks']}"
    versions = session.get(f"/api/projects/{project}/model-versions/", extended="true")["static"]
    counts = {each["model_version"]: each["count"] for each in versions}
    assert counts == {summary["ranking"]: tasks}, f"one prediction of each task was expected, found {counts}"
    query = json.dumps({"ordering": ["tasks:predictions_score"]})
    lowest = session.get("/api/tasks", project=project, query=query, page_size=1, fields="task_only")["tasks"][0]["id"]
    served = session.get(f"/api/projects/{project}/next")["id"]
    assert served == lowest, f"the label stream serves task {served}, the lowest score is task {lowest}'s"


if __name__ == "__main__":
    main()
