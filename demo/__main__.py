"""The demo, from images to the tasks that are worth labelling next: `python -m demo --help`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from contract.errors import LabelnextError
from demo.label_studio import EMAIL, PASSWORD, label_studio
from demo.pool import Pool, read_pool, write_digits
from demo.processes import Child, DemoError, ProcessError, free_port
from demo.product import CHECKOUT, Workplace, rank, serving, train
from demo.project import Project, Task
from demo.report import Scored, contact_sheet, table, worth
from demo.weights import choose_start

_LABEL_STUDIO_PORT, _SERVER_PORT = 8080, 9090  # preferred, since people know them
_WATCH_S = 0.5
_BY_SCORE = "tasks:predictions_score"  # ascending: the lowest score is what the model knows least about
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(BaseException):
    """A signal asked the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status: 0 also when a person ends it while it serves."""
    options = _parse(arguments)
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        _run(options)
    except _Stopped as stopped:
        print("\nStopped; nothing keeps running.")
        return 128 + stopped.number
    except (DemoError, LabelnextError, OSError) as err:
        print(f"The demo cannot go on: {err}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of class folders; handwritten digits by default")
    parser.add_argument("--weights", help="imagenet, none, or a file; by default imagenet")
    parser.add_argument("--backbone", help="any of the trainer's; by default vgg16 where its weights can be had")
    parser.add_argument("--once", action="store_true", help="end after the report instead of serving on")
    parser.add_argument("--data", type=Path, default=CHECKOUT / ".demo", help="where everything is kept")
    parser.add_argument("--limit", type=_count, default=500, help="use at most so many images (default 500)")
    parser.add_argument("--labelled", type=_count, default=150, help="label so many at first (default 150)")
    parser.add_argument("--epochs", type=_count, help="train for so many passes over the labels")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the images (default 0)")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return count


def _stop(number: int, _frame: FrameType | None) -> None:
    # Once is enough: the children are to be stopped in peace.
    for signal_number in _STOP_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    raise _Stopped(number)


def _run(options: argparse.Namespace) -> None:
    started = time.monotonic()

    def tell(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    data: Path = options.data.resolve()
    pool = _pool(options, data)
    start = choose_start(options.weights, options.backbone)
    counts = ", ".join(f"{label}: {count}" for label, count in pool.counts.items())
    print(f"images:  {len(pool.images)} ({counts}); rare: {', '.join(sorted(pool.rare))}")
    print(f"weights: {start.explanation}", flush=True)
    with ExitStack() as stack:
        python = CHECKOUT / ".venv-label-studio" / "bin" / "python"
        studio = stack.enter_context(
            label_studio(data / "label-studio", python=python, port=free_port(_LABEL_STUDIO_PORT))
        )
        tell(f"Label Studio answers on {studio.url}")
        workplace = Workplace(data / "models", data / "cache", studio.url, studio.token)
        project = Project.create(studio.client(), title="Labelnext demo", labels=pool.labels)
        _label_first(project, pool, options.labelled)
        tell(f"{len(pool.images)} images uploaded, {options.labelled} of them labelled at random; the trainer starts")
        epochs = ["--epochs", str(options.epochs)] if options.epochs else []
        training = train(workplace, project.id, [*start.options, *epochs])
        measured = f"accuracy {training.accuracy:.0%} on labels held out" if training.accuracy is not None else ""
        tell(f"trained in {training.seconds:.0f} s: {measured or 'too few labels to hold any out and measure'}")
        server = stack.enter_context(
            serving(
                workplace,
                python=CHECKOUT / ".venv-server" / "bin" / "python",
                port=free_port(_SERVER_PORT),
                log=data / "server.log",
                version=training.version,
            )
        )
        tell(f"the server answers on {server.url} with version {training.version}")
        scored = _rank(workplace, project, pool, server=server.url)
        tell(f"{len(scored)} unlabelled images ranked: what teaches the model most comes first")
        tab = project.add_tab("Label these first", ordering=_BY_SCORE)
        _report(scored, tab, data / "contact-sheet.png")
        if not options.once:
            _serve_on(studio.process, server.process)


def _pool(options: argparse.Namespace, data: Path) -> Pool:
    root: Path | None = options.images
    if root is None:
        root = data / "digits"
        write_digits(root)
    pool = read_pool(root, limit=options.limit, seed=options.seed)
    if options.labelled >= len(pool.images):
        raise DemoError(f"{root} gives {len(pool.images)} images, of which {options.labelled} are to be labelled first")
    return pool


def _label_first(project: Project, pool: Pool, labelled: int) -> None:
    """Upload the pool, and label the first images of its random order as a person would."""
    project.upload({image.name: image.path.read_bytes() for image in pool.images})
    task_ids = {task.file: task.id for task in project.tasks()}
    for image in pool.images[:labelled]:
        project.annotate(task_ids[image.name], image.label)


def _rank(workplace: Workplace, project: Project, pool: Pool, *, server: str) -> list[Scored]:
    """Have the trainer rank all unlabelled images, and return them as the Data Manager sorts them."""
    project.connect(server, title="Labelnext")
    rank(workplace, project.id, server)
    tasks = [task for task in project.tasks(ordering=_BY_SCORE) if task.predictions]
    _check_order(project, tasks)
    images = {image.name: image for image in pool.images}
    unlabelled = [task for task in tasks if not task.labelled]
    return [Scored(task, images[task.file], images[task.file].label in pool.rare) for task in unlabelled]


def _check_order(project: Project, tasks: Sequence[Task]) -> None:
    """Raise DemoError unless table and label stream both begin with the lowest score."""
    scores = [task.predictions[0].score for task in tasks]
    if not scores or scores != sorted(scores):
        raise DemoError(f"expected the Data Manager to sort by ascending score, got {scores[:10]}")
    served = project.next_task_id()
    if served not in {task.id for task, score in zip(tasks, scores, strict=True) if score == scores[0]}:
        raise DemoError(f"expected the label stream to serve task {tasks[0].id}, the lowest score, got task {served}")


def _report(scored: Sequence[Scored], tab: str, sheet: Path) -> None:
    contact_sheet(scored).save(sheet)
    print(f"\nThe ten tasks to label first (lowest score first; BALD in nats)\n{table(scored)}\n")
    print(f"{worth(scored)}\n")
    print(f"  contact sheet  {sheet}")
    print(f"  Label Studio   {tab}")
    print(f"  login          {EMAIL}  password {PASSWORD}", flush=True)


def _serve_on(*children: Child) -> None:
    """Return when a person asks for it.

    Raises:
        ProcessError: one of the processes ended by itself.
    """
    print("\nCtrl-C ends it all.", flush=True)
    try:
        while all(child.popen.poll() is None for child in children):
            time.sleep(_WATCH_S)
    except _Stopped:
        return
    ended = next(child for child in children if child.popen.poll() is not None)
    raise ProcessError(f"{ended.name} ended by itself; see {ended.log}")


if __name__ == "__main__":
    sys.exit(main())
