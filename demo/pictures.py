"""Screenshots and the animated GIF of README and docs: `python -m demo.pictures`.

Labels, trains and ranks the demo's drawings on a real Label Studio, and captures it in a real browser.
"""

import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from PIL import Image
from playwright.sync_api import Page, expect

from demo import clipart
from demo.browser import PATIENCE_MS, Film, logged_in, open_browser
from demo.label_studio import LabelStudio, label_studio
from demo.network import choose_network
from demo.pool import read_pool
from demo.processes import DemoError
from demo.product import CHECKOUT, Server, Workplace, rank, serving, train
from demo.project import Project

_IMAGES: Final = CHECKOUT / "docs" / "images"
_COLOURS: Final = 128
_FILM_WIDTH: Final = 960

_INITIAL_LABELS, _LABELS_PER_ROUND = 80, 60
_MIN_ROUNDS, _MAX_ROUNDS = 3, 6
"""Rounds continue until there is a tab Sure, whose labels can be confirmed in bulk."""
_HOLDOUT: Final = ("--holdout-share", "0.3")
"""Far above the default: a tenth of a few hundred drawings is too small to certify any precision."""
_SURE: Final = ("--sure", "0.7")
"""Below the default: drawings are hard to classify, and at 0.8 some runs would offer no labels to confirm."""
_MISTAKES: Final = 5
"""Number of wrong labels for the tab Look again."""
_LABELS_FILMED: Final = 3

_SELECTED: Final = "window.Htx?.annotationStore?.selected?.names?.get('label')?.selectedValues() ?? []"


@dataclass(frozen=True, slots=True)
class _Demo:
    """A project in Label Studio with its trainer and server."""

    studio: LabelStudio
    server: Server
    project: Project
    workplace: Workplace
    truth: Mapping[int, str]
    """The true class of each task, by task id."""


def main() -> int:
    """Take all pictures; return the exit status."""
    try:
        with ExitStack() as stack:
            demo = _prepare(stack)
            browser = stack.enter_context(open_browser())
            page = stack.enter_context(logged_in(browser, demo.studio.url, width=1200, height=720))
            _take_pictures(page, demo)
            _film(page, demo)
    except DemoError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    return 0


def _prepare(stack: ExitStack) -> _Demo:
    """Run rounds with the true classes and a few wrong labels, until labels can be confirmed in bulk."""
    data = CHECKOUT / ".cache" / "pictures"
    shutil.rmtree(data, ignore_errors=True)  # versions of an earlier run belong to another project
    drawings = CHECKOUT / ".cache" / clipart.PACKAGE
    clipart.provide_drawings(drawings)
    pool = read_pool(drawings, limit=1000, seed=0)
    studio = stack.enter_context(label_studio(data / "label-studio"))
    folders = (data / "models", data / "cache")
    workplace = Workplace(*folders, studio.url, studio.token, features=data / "features")
    project = Project.create(studio.client(), title="Animals, plants and things", labels=pool.labels)
    project.upload({image.name: image.path.read_bytes() for image in pool.images})
    labels = {image.name: image.label for image in pool.images}
    truth = {task.id: labels[task.file] for task in project.tasks()}
    tasks = list(truth)
    for task in tasks[:_INITIAL_LABELS]:
        wrong = next(label for label in pool.labels if label != truth[task])
        project.annotate(task, wrong if task in tasks[:_MISTAKES] else truth[task])
    server = stack.enter_context(serving(workplace, log=data / "server.log"))
    demo = _Demo(studio, server, project, workplace, truth)
    _round(demo)
    _label_tab(demo, "Random holdout")
    for rounds in range(1, _MAX_ROUNDS):
        if rounds >= _MIN_ROUNDS and _sure_tab(demo):
            break
        _label_tab(demo, "Label next", limit=_LABELS_PER_ROUND)
        _round(demo)
    project.connect(server.url, title="Labelnext")
    return demo


def _label_tab(demo: _Demo, title: str, *, limit: int | None = None) -> None:
    """Annotate the first `limit` tasks of a tab, or all."""
    for task in demo.project.tasks_in(title)[:limit]:
        demo.project.annotate(task, demo.truth[task])


def _round(demo: _Demo) -> None:
    train(demo.workplace, demo.project.id, [*choose_network(None, None).options, *_HOLDOUT])
    rank(demo.workplace, demo.project.id, demo.server.url, (*_HOLDOUT, *_SURE))


def _take_pictures(page: Page, demo: _Demo) -> None:
    _open_list(page, demo.project.tab("Label next"))
    _save(page, "label-next")
    _open_sure_tab(page, demo)
    _save(page, "sure")
    _open_list(page, demo.project.tab("Look again"))
    _save(page, "look-again")


def _film(page: Page, demo: _Demo) -> None:
    """Film the labelling of a few tasks, a bulk confirmation, and the server's page after the next round."""
    film = Film(page, _FILM_WIDTH)
    _open_list(page, demo.project.tab("Label next"))
    film.shoot("1. Label next: the most informative images come first, with the reason", 3)
    page.get_by_text("Label All Tasks").click()
    for _ in range(_LABELS_FILMED):
        _label(page, demo, film)
    _open_sure_tab(page, demo)
    count = int(page.get_by_title("Filtered tasks").inner_text())
    film.shoot("3. Sure: check many labels at once, and untick wrong ones", 3)
    page.get_by_text(re.compile(r"^\d+ Tasks?$")).first.click()
    action = page.get_by_text("Create Annotations From Predictions").first
    action.hover()
    film.shoot("4. ... then confirm all others", 2)
    action.click()
    page.get_by_text("OK", exact=True).click()
    expect(page.get_by_title("Filtered tasks")).to_have_text("0", timeout=PATIENCE_MS)
    page.wait_for_timeout(1000)
    film.shoot(f"5. {count} labels at once", 2)
    _round(demo)
    page.goto(demo.server.url)
    page.wait_for_timeout(1000)
    _save(page, "server")
    film.shoot("6. Each round: how good it is, and whether more labels would help", 4)
    film.save(_IMAGES / "loop.gif")


def _label(page: Page, demo: _Demo, film: Film) -> None:
    caption = "2. Label as usual: the prediction is ticked, a key corrects it"
    page.get_by_role("button", name="Submit").first.wait_for()
    page.wait_for_timeout(1500)
    task = page.locator("[class*=current-task__task-id]").inner_text().split()[0]
    film.shoot(caption, 1)
    label = demo.truth[int(task)]
    if page.evaluate(_SELECTED) != [label]:
        page.get_by_label(label).first.click()
        film.shoot(caption, 0.8)
    page.get_by_role("button", name="Submit").first.click()
    page.wait_for_function(
        "before => document.querySelector('[class*=current-task__task-id]')?.innerText.split(/\\s/)[0] !== before",
        arg=task,
    )


def _sure_tab(demo: _Demo) -> str | None:
    """Return the title of the tab Sure of the most frequent label, if there is one yet."""
    ((label, _),) = Counter(demo.truth.values()).most_common(1)
    return next((title for title in demo.project.tabs() if title.startswith(f"Sure: {label} ")), None)


def _open_sure_tab(page: Page, demo: _Demo) -> None:
    title = _sure_tab(demo)
    if title is None:
        raise DemoError("there is no tab Sure for the most frequent label; more rounds may be needed (_MAX_ROUNDS)")
    page.goto(demo.project.tab(title))
    page.get_by_title("Filtered tasks").wait_for()
    page.wait_for_timeout(4000)  # until images have loaded


def _open_list(page: Page, url: str) -> None:
    page.goto(url)
    page.get_by_test_id("table-row-wrapper").first.wait_for()
    page.wait_for_timeout(2000)  # until images have loaded


def _save(page: Page, name: str) -> None:
    """Save a screenshot; a small palette keeps the file small."""
    path = _IMAGES / f"{name}.png"
    page.screenshot(path=path, animations="disabled")
    Image.open(path).convert("RGB").quantize(_COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
