"""The demo, from a folder of images to a ranked Label Studio project: `python -m demo --help`."""

import argparse
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from contract.errors import LabelnextError, name_some
from demo import clipart
from demo.comparison import Outcome, count_rare, write_page
from demo.label_studio import EMAIL, PASSWORD, label_studio
from demo.loop import MODEL, Loop
from demo.packages import PackageError
from demo.pool import Pool, PoolImage, read_pool, write_digits
from demo.processes import Child, DemoError, ProcessError
from demo.product import CHECKOUT, Server, Workplace
from demo.project import Project
from demo.screen import Screen
from demo.weights import choose_network

_LABEL_STUDIO_PORT, _SERVER_PORT = 8080, 9090  # the usual ports, if they are free
_WATCH_S = 0.5
_NAMED = 6  # classes named in one line
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(BaseException):
    """The demo received the stop signal with this number."""


@dataclass(frozen=True, slots=True)
class _Images:
    """The images of the demo, and how many of them are labelled in each step."""

    pool: Pool
    origin: str
    first: int
    """Images labelled at random, before round 1."""
    then: int
    """Images labelled in the order of round 1."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status; ending it while it serves is no failure."""
    options = _parse(arguments)
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        _run(options)
    except _Stopped as stopped:
        print("\nStopped; nothing keeps running.")
        return 128 + int(stopped.args[0])
    except (DemoError, LabelnextError, OSError) as err:
        print(f"The demo cannot go on: {err}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of class folders; drawings by default")
    parser.add_argument("--weights", help="imagenet, none, or a file; by default imagenet")
    parser.add_argument("--backbone", help="any of the trainer's; by default efficientnet_lite0")
    parser.add_argument("--once", action="store_true", help="end after the report instead of serving on")
    parser.add_argument("--data", type=Path, default=CHECKOUT / ".demo", help="where everything is kept")
    parser.add_argument("--limit", type=_count, default=1000, help="use at most so many images (default 1000)")
    parser.add_argument("--labelled", type=_count, help="label so many at first (default 80, of few images a quarter)")
    parser.add_argument("--round", type=_count, help="label so many in the new order (default 60, or a quarter)")
    parser.add_argument("--epochs", type=_count, help="train for so many passes over the labels")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the images (default 0)")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return count


def _stop(number: int, _frame: FrameType | None) -> None:
    # Further signals must not interrupt the shutdown of the child processes.
    for signal_number in _STOP_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    raise _Stopped(number)


def _run(options: argparse.Namespace) -> None:
    data: Path = options.data.resolve()
    screen = Screen()
    screen.title("Labelnext: which image should be labelled next?")
    images = _find_images(options, data, screen)
    network = choose_network(options.weights, options.backbone)
    screen.note("Network", network.explanation)
    training = [*network.options, *(["--epochs", str(options.epochs)] if options.epochs else [])]
    with ExitStack() as stack:
        with screen.step("Label Studio", "starting; the first time it makes its database, for a minute") as step:
            studio = stack.enter_context(label_studio(data / "label-studio", port=_LABEL_STUDIO_PORT))
            step.outcome = f"answers on {studio.url}"
        workplace = Workplace(
            data / "models", data / "cache", studio.url, studio.token, model=MODEL, features=data / "features"
        )
        project = Project.create(studio.client(), title="Labelnext demo", labels=images.pool.labels)
        loop = Loop(workplace, project, images.pool, training, data)
        server = _label_and_rank(loop, images, screen, stack)
        if not options.once:
            _serve_on(studio.process, server.process)


def _find_images(options: argparse.Namespace, data: Path, screen: Screen) -> _Images:
    """Return the images given by --images, else the drawings, else digits."""
    with screen.step("Images", "downloading a package of drawings, once") as step:
        root, origin = options.images, "images"
        if root is None:
            root, origin = _provide_images(data)
        pool = read_pool(root, limit=options.limit, seed=options.seed)
        quarter = len(pool.images) // 4
        first, then = options.labelled or min(80, quarter), options.round or min(60, quarter)
        if not 0 < first + then < len(pool.images):
            raise DemoError(
                f"{root} gives {len(pool.images)} images, too few to label {first}, then {then}, and have some left"
            )
        step.outcome = f"{len(pool.images)} {origin}"
    counts = {label: f"{label} {count}" for label, count in pool.counts.items()}
    screen.detail(name_some([text for label, text in counts.items() if label not in pool.rare], most=_NAMED))
    screen.detail("rare: " + name_some([counts[label] for label in counts if label in pool.rare], most=_NAMED))
    return _Images(pool, origin, first, then)


def _provide_images(data: Path) -> tuple[Path, str]:
    """Return a folder of class folders for a demo without --images, and a description of its images."""
    drawings = CHECKOUT / ".cache" / clipart.PACKAGE
    try:
        clipart.provide_drawings(drawings)
    except PackageError as err:
        write_digits(data / "digits")
        return data / "digits", f"handwritten digits, since there are no drawings: {err}"
    return drawings, clipart.ORIGIN


def _label_and_rank(loop: Loop, images: _Images, screen: Screen, stack: ExitStack) -> Server:
    """Run both rounds, show the comparison with random labelling, and return the server, which keeps running."""
    pool, then = images.pool, images.then
    with screen.step("Project", "uploading the images and labelling the first") as step:
        loop.upload()
        loop.label(pool.images[: images.first])
        step.outcome = f"{len(pool.images)} tasks, of which {images.first} are labelled, drawn at random"
    with screen.step("Round 1", f"training on {images.first} labels") as step:
        loop.train()
        step.update("starting the server")
        server = stack.enter_context(loop.serve(port=_SERVER_PORT))
        step.update("ranking what is left")
        first = loop.rank(server.url)
        step.outcome = f"trained on {images.first} labels; {_first_of(first, then, pool)}"
    with screen.step("Round 2", f"labelling the {then} that came first") as step, ThreadPoolExecutor(1) as beside:
        random = beside.submit(loop.measure_random, pool.images[: images.first + then])
        loop.label(first[:then])
        step.update(f"training on {len(loop.labelled)} labels, and on as many drawn at random")
        loop.train()
        step.update("ranking what is left")
        second = loop.rank(server.url)
        step.update("counting what is right")
        outcomes = {"in this order": loop.measure(server), "at random": random.result()}
        step.outcome = f"trained on {len(loop.labelled)} labels; {_first_of(second, then, pool)}"
    page = loop.data / "report.html"
    by_chance = pool.images[images.first :]
    orders = {"First in round 1": first, "First in round 2": second, "First at random": by_chance}
    write_page(page, pool, orders, outcomes, origin=images.origin)
    _show(outcomes, pool, screen)
    screen.links(
        {
            "Label next": loop.project.tab("Label next"),
            "Log in": f"{EMAIL}, password {PASSWORD}",
            "The model": server.url,
            "Comparison": page.as_uri(),
        }
    )
    return server


def _first_of(order: Sequence[PoolImage], count: int, pool: Pool) -> str:
    """Describe how many of the first `count` images are rare, and how many of a random selection would be."""
    rare = count_rare(pool, order[:count])
    expected = count * count_rare(pool, order) / len(order)
    return f"{rare} of the next {min(count, len(order))} are rare, by chance {expected:.0f}"


def _show(outcomes: Mapping[str, Outcome], pool: Pool, screen: Screen) -> None:
    rare = count_rare(pool, pool.images)
    labels = next(iter(outcomes.values())).labels
    screen.table(
        f"What {labels} labels came to",
        list(outcomes),
        {
            "rare images labelled": [f"{outcome.rare_labelled} of {rare}" for outcome in outcomes.values()],
            "rare images right, labelled or guessed": [
                f"{outcome.rare_right} of {rare}" for outcome in outcomes.values()
            ],
            "all images right, labelled or guessed": [f"{outcome.right:.1%}" for outcome in outcomes.values()],
        },
    )


def _serve_on(*children: Child) -> None:
    """Wait until the user stops the demo; raise ProcessError if a child process ends before."""
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
