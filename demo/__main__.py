"""Labels images in two rounds with Label Studio, trainer and server, and compares the order with random labels."""

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
from demo.network import choose_network
from demo.packages import PackageError
from demo.pool import Pool, PoolImage, read_pool, write_digits
from demo.processes import Child, DemoError, ProcessError
from demo.product import CHECKOUT, Server, Workplace
from demo.project import Project
from demo.screen import Screen

_LABEL_STUDIO_PORT, _SERVER_PORT = 8080, 9090  # if they are free
_POLL_S = 0.5
_MAX_CLASSES_SHOWN = 6
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Stopped(BaseException):
    """The demo received the stop signal with this number."""


@dataclass(frozen=True, slots=True)
class _Images:
    """The images of the demo, and how many of them are labelled when."""

    pool: Pool
    origin: str
    """Description of the images."""
    initial: int
    """Number of images labelled at random, before round 1."""
    per_round: int
    """Number of images labelled in the order of round 1."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status: 0 if it is stopped while it serves."""
    options = _parse(arguments)
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        _run(options)
    except _Stopped as stopped:
        print("\nStopped all processes.")
        return 128 + int(stopped.args[0])
    except (DemoError, LabelnextError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of class folders (default: drawings)")
    parser.add_argument("--weights", help="imagenet, none or a file (default: imagenet)")
    parser.add_argument("--backbone", help="a backbone of the trainer (default: efficientnet_lite0)")
    parser.add_argument("--once", action="store_true", help="exit after the report")
    parser.add_argument("--data", type=Path, default=CHECKOUT / ".demo", help="folder for all data (default: .demo)")
    parser.add_argument("--limit", type=_count, default=1000, help="maximum number of images (default: 1000)")
    parser.add_argument("--labelled", type=_count, help="labels before round 1 (default: 80, at most a quarter)")
    parser.add_argument("--round", type=_count, help="labels between the rounds (default: 60, at most a quarter)")
    parser.add_argument("--epochs", type=_count, help="number of training epochs")
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
    screen.note("Network", network.description)
    training = [*network.options, *(["--epochs", str(options.epochs)] if options.epochs else [])]
    with ExitStack() as stack:
        with screen.step("Label Studio", "starting; the first start creates the database, in about a minute") as step:
            studio = stack.enter_context(label_studio(data / "label-studio", port=_LABEL_STUDIO_PORT))
            step.outcome = f"answers on {studio.url}"
        workplace = Workplace(
            data / "models", data / "cache", studio.url, studio.token, model=MODEL, features=data / "features"
        )
        project = Project.create(studio.client(), title="Labelnext demo", labels=images.pool.labels)
        loop = Loop(workplace, project, images.pool, training, data)
        server = _label_and_rank(loop, images, screen, stack)
        if not options.once:
            _wait_until_stopped(studio.process, server.process)


def _find_images(options: argparse.Namespace, data: Path, screen: Screen) -> _Images:
    """Return the images given by --images, else the drawings, else digits."""
    with screen.step("Images", "reading images") as step:
        root, origin = options.images, "images"
        if root is None:
            step.update("downloading drawings, once")
            root, origin = _provide_images(data)
        pool = read_pool(root, limit=options.limit, seed=0)
        quarter = len(pool.images) // 4
        initial, per_round = options.labelled or min(80, quarter), options.round or min(60, quarter)
        if not 0 < initial + per_round < len(pool.images):
            raise DemoError(
                f"expected more than {initial} + {per_round} images in {root}, of which {initial} are labelled before "
                f"round 1 and {per_round} after it, found {len(pool.images)}; lower --labelled or --round"
            )
        step.outcome = f"{len(pool.images)} {origin}"
    frequent = [f"{label} {count}" for label, count in pool.counts.items() if label not in pool.rare]
    rare = [f"{label} {count}" for label, count in pool.counts.items() if label in pool.rare]
    screen.detail(name_some(frequent, limit=_MAX_CLASSES_SHOWN))
    screen.detail(f"rare: {name_some(rare, limit=_MAX_CLASSES_SHOWN)}")
    return _Images(pool, origin, initial, per_round)


def _provide_images(data: Path) -> tuple[Path, str]:
    """Return a folder of class folders for a demo without --images, and a description of its images."""
    drawings = CHECKOUT / ".cache" / clipart.PACKAGE
    try:
        clipart.provide_drawings(drawings)
    except PackageError as err:
        write_digits(data / "digits")
        return data / "digits", f"handwritten digits, because the drawings are not available: {err}"
    return drawings, clipart.ORIGIN


def _label_and_rank(loop: Loop, images: _Images, screen: Screen, stack: ExitStack) -> Server:
    """Run both rounds, show the comparison with random labelling, and return the server, which keeps running."""
    pool, initial, per_round = images.pool, images.initial, images.per_round
    with screen.step("Project", "uploading the images and labelling the first") as step:
        loop.upload()
        loop.label(pool.images[:initial])
        step.outcome = f"{len(pool.images)} tasks, {initial} of them labelled at random"
    with screen.step("Round 1", f"training on {initial} labels") as step:
        loop.train()
        step.update("starting the server")
        server = stack.enter_context(loop.serve(port=_SERVER_PORT))
        step.update("ranking the unlabelled images")
        first = loop.rank(server.url)
        step.outcome = f"trained on {initial} labels; {_describe_order(first, per_round, pool)}"
    with screen.step("Round 2", f"labelling the first {per_round} images") as step, ThreadPoolExecutor(1) as executor:
        random = executor.submit(loop.measure_random, pool.images[: initial + per_round])
        loop.label(first[:per_round])
        step.update(f"training on {len(loop.labelled)} labels, and on as many random ones")
        loop.train()
        step.update("ranking the unlabelled images")
        second = loop.rank(server.url)
        step.update("comparing with random labels")
        outcomes = {"ranked": loop.measure(server), "random": random.result()}
        step.outcome = f"trained on {len(loop.labelled)} labels; {_describe_order(second, per_round, pool)}"
    orders = {"First in round 1": first, "First in round 2": second, "First at random": pool.images[initial:]}
    page = loop.data / "report.html"
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


def _describe_order(order: Sequence[PoolImage], count: int, pool: Pool) -> str:
    """Describe how many of the first `count` images are rare, compared with a random selection."""
    rare = count_rare(pool, order[:count])
    expected = count * count_rare(pool, order) / len(order)
    return f"{rare} of the first {min(count, len(order))} are rare, at random {expected:.0f}"


def _show(outcomes: Mapping[str, Outcome], pool: Pool, screen: Screen) -> None:
    rare = count_rare(pool, pool.images)
    labels = next(iter(outcomes.values())).labels
    screen.table(
        f"With {labels} labels",
        list(outcomes),
        {
            "rare images labelled": [f"{outcome.rare_labelled} of {rare}" for outcome in outcomes.values()],
            "rare images labelled or predicted correctly": [
                f"{outcome.rare_correct} of {rare}" for outcome in outcomes.values()
            ],
            "all images labelled or predicted correctly": [f"{outcome.accuracy:.1%}" for outcome in outcomes.values()],
        },
    )


def _wait_until_stopped(*children: Child) -> None:
    """Wait until the user stops the demo; raise ProcessError if a child process ends earlier."""
    print("\nPress Ctrl-C to stop.", flush=True)
    try:
        while all(child.popen.poll() is None for child in children):
            time.sleep(_POLL_S)
    except _Stopped:
        return
    ended = next(child for child in children if child.popen.poll() is not None)
    raise ProcessError(f"{ended.name} ended unexpectedly; see {ended.log}")


if __name__ == "__main__":
    sys.exit(main())
