"""Fixtures of the system tests: Label Studio, its projects, the server under gunicorn, and a browser."""

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
QUICK_TRAINING = (*SMALL_NETWORK, "--train", "all", "--epochs", "12")
"""Learns a few digits within seconds on two cores."""

ARTIFACTS = CHECKOUT / "tests" / "artifacts"

Serve = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def new_label_studio_data(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The data folder of an empty Label Studio after its first start, to be copied."""
    base = tmp_path_factory.getbasetemp()
    data = (base if worker_id == "master" else base.parent) / "label-studio-new"
    with FileLock(data.with_suffix(".lock")):  # all workers share the slow first start
        if not data.exists():
            starting = data.with_suffix(".starting")
            with label_studio(starting):
                pass
            starting.rename(data)
    return data


class RestartableLabelStudio:
    """A Label Studio that keeps its address and data when it is restarted."""

    def __init__(self, data: Path) -> None:
        self._data, self._port, self._running = data, free_port(), ExitStack()
        self.label_studio: LabelStudio
        self._up = False
        self.start()

    def start(self) -> None:
        """Start it unless it is running."""
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
    """The Label Studio of all tests; a test that stops it must start it again."""
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
    """Handwritten digits of three imbalanced classes."""
    root = tmp_path_factory.mktemp("digits")
    write_digits(root, counts=(24, 16, 8))
    return read_pool(root, limit=48, seed=1)


@pytest.fixture
def workplace(studio: LabelStudio, tmp_path: Path) -> Workplace:
    """A separate model repository, and the shared Label Studio."""
    return Workplace(tmp_path / "models", tmp_path / "cache", studio.url, studio.token)


@pytest.fixture
def project(studio: LabelStudio, digits: Pool, request: pytest.FixtureRequest) -> Project:
    """A new project with the labels of the digits, and without tasks."""
    return Project.create(studio.client(), title=request.node.name[:50], labels=digits.labels)


@dataclass(frozen=True)
class Annotator:
    """Annotates tasks of a project with their true labels."""

    project: Project
    truth: Mapping[int, str]
    """True labels by task id, in the order of ids."""

    def label(self, *tasks: int) -> None:
        for task in tasks:
            self.project.annotate(task, self.truth[task])

    def label_first(self, count: int) -> None:
        self.label(*list(self.truth)[:count])


def retrieve_predictions(project: Project, task_ids: Sequence[int]) -> None:
    """Run the Data Manager's action "Retrieve predictions" for these tasks."""
    path = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project.id}"
    project.client.post(path, {"selectedItems": {"all": False, "included": list(task_ids)}})


def import_pool(project: Project, pool: Pool) -> Annotator:
    """Upload the images of a pool, in its order, and return an annotator."""
    project.upload({image.name: image.path.read_bytes() for image in pool.images})
    truth = {image.name: image.label for image in pool.images}
    return Annotator(project, {task.id: truth[task.file] for task in project.tasks()})


@pytest.fixture
def annotator(project: Project, digits: Pool) -> Annotator:
    """The annotator of a project with the digits."""
    return import_pool(project, digits)


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Return a function that starts servers under gunicorn with a short poll interval."""
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with ExitStack() as stack:
        try:
            browser = stack.enter_context(open_browser())
        except DemoError as err:
            pytest.skip(str(err))
        yield browser


@pytest.fixture(scope="module")
def page(browser: Browser, studio: LabelStudio) -> Iterator[Page]:
    """A page of a logged-in user, which cannot request anything from other machines."""
    with logged_in(browser, studio.url) as page:
        yield page


def save_screenshot(page: Page, name: str, *, full: bool = False) -> None:
    """Save a screenshot in tests/artifacts."""
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=full)
