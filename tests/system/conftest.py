"""The real processes that the system tests share: Label Studio, a published version, the server under gunicorn."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from filelock import FileLock
from playwright.sync_api import Browser, Page

from demo.browser import logged_in, open_browser
from demo.label_studio import LabelStudio, label_studio
from demo.pool import Pool, read_pool, write_digits
from demo.processes import DemoError, free_port
from demo.product import CHECKOUT, Server, Workplace, serving
from demo.project import Project

SMALL_NETWORK = ("--weights", "none", "--backbone", "vgg11_bn", "--image-size", "32")
# It learns to tell a few digits apart in seconds on two cores.
QUICK_TRAINING = (*SMALL_NETWORK, "--train", "all", "--epochs", "12")

ARTIFACTS = CHECKOUT / "tests" / "artifacts"

Serve = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def new_label_studio_data(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of a Label Studio that has been started once and holds nothing; to be copied, not used."""
    base = tmp_path_factory.getbasetemp()
    data = (base if worker_id == "master" else base.parent) / "label-studio-new"
    with FileLock(data.with_suffix(".lock")):  # its first start takes long, and is for all workers
        if not data.exists():
            starting = data.with_suffix(".starting")
            with label_studio(starting):
                pass
            starting.rename(data)
    return data


class RestartableLabelStudio:
    """A Label Studio that comes back at the same address, with all that it held."""

    def __init__(self, data: Path) -> None:
        self._data, self._port, self._running = data, free_port(), ExitStack()
        self.label_studio: LabelStudio
        self._up = False
        self.start()

    def start(self) -> None:
        """Start it, unless it runs."""
        if not self._up:
            self.label_studio = self._running.enter_context(label_studio(self._data, port=self._port))
        self._up = True

    def stop(self) -> None:
        self._running.close()
        self._up = False


@pytest.fixture(scope="session")
def restartable(
    new_label_studio_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RestartableLabelStudio]:
    """The Label Studio of all tests; who stops it starts it again."""
    data = tmp_path_factory.mktemp("label-studio") / "data"
    shutil.copytree(new_label_studio_data, data)
    running = RestartableLabelStudio(data)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def studio(restartable: RestartableLabelStudio) -> LabelStudio:
    """A running Label Studio."""
    return restartable.label_studio


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Handwritten digits of three classes, imbalanced."""
    root = tmp_path_factory.mktemp("digits")
    write_digits(root, counts=(24, 16, 8))
    return read_pool(root, limit=48, seed=1)


@pytest.fixture
def workplace(studio: LabelStudio, tmp_path: Path) -> Workplace:
    """A model repository of its own for one test, and the shared Label Studio."""
    return Workplace(tmp_path / "models", tmp_path / "cache", studio.url, studio.token)


@pytest.fixture
def project(studio: LabelStudio, digits: Pool, request: pytest.FixtureRequest) -> Project:
    """A new project without tasks, in which an image gets one of the digits' labels."""
    return Project.create(studio.client(), title=request.node.name[:50], labels=digits.labels)


@dataclass(frozen=True)
class Annotator:
    """Labels tasks of a project as a person would who knows the truth."""

    project: Project
    truth: Mapping[int, str]
    """Of each task, in the order of their numbers."""

    def label(self, *tasks: int) -> None:
        for task in tasks:
            self.project.annotate(task, self.truth[task])

    def label_first(self, count: int) -> None:
        self.label(*list(self.truth)[:count])


def retrieve_predictions(project: Project, task_ids: Sequence[int]) -> None:
    """Have Label Studio ask its backend about these tasks, as the Data Manager's action does."""
    path = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project.id}"
    project.client.post(path, {"selectedItems": {"all": False, "included": list(task_ids)}})


def fill(project: Project, pool: Pool) -> Annotator:
    """Upload the images of a pool, whose tasks are in the order of the pool."""
    project.upload({image.name: image.path.read_bytes() for image in pool.images})
    truth = {image.name: image.label for image in pool.images}
    return Annotator(project, {task.id: truth[task.file] for task in project.tasks()})


@pytest.fixture
def annotator(project: Project, digits: Pool) -> Annotator:
    """A project with the digits."""
    return fill(project, digits)


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Start servers under gunicorn, on free ports, that look for new versions often."""
    numbers = count()

    def start(
        workplace: Workplace, *, settings: Mapping[str, str] | None = None, port: int | None = None, **options: str
    ) -> AbstractContextManager[Server]:
        return serving(
            workplace,
            log=tmp_path / f"server-{next(numbers)}.log",
            port=port,
            settings={"LABELNEXT_POLL_S": "0.2", **(settings or {})},
            **options,
        )

    return start


# ---- browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium of this machine's own."""
    with ExitStack() as stack:
        try:
            browser = stack.enter_context(open_browser())
        except DemoError as err:
            pytest.skip(str(err))
        yield browser


@pytest.fixture(scope="module")
def page(browser: Browser, studio: LabelStudio) -> Iterator[Page]:
    """A page of somebody who is logged in; what is not on this machine is not asked for."""
    with logged_in(browser, studio.url) as page:
        yield page


def keep_picture(page: Page, name: str, *, full: bool = False) -> None:
    """Leave a screenshot for people to look at."""
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=full)
