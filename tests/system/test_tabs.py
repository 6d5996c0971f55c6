"""The tabs of the Data Manager, as a person sees and uses them: a real browser on a real Label Studio."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from demo.browser import PATIENCE_MS
from demo.label_studio import LabelStudio
from demo.pool import Pool, read_pool, write_digits
from demo.product import Workplace, rank, train
from demo.project import Project
from tests.system.conftest import Serve, keep_picture

TRAINING = ("--weights", "none", "--backbone", "vgg11_bn", "--image-size", "32", "--train", "classifier")
LABELLED = 60
WRONG = 3


@pytest.fixture
def digits(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Handwritten digits of three classes."""
    root = tmp_path_factory.mktemp("digits")
    write_digits(root, counts=(50, 40, 30))
    return read_pool(root, limit=120, seed=1)


def test_tabs_hold_what_they_say(
    page: Page, studio: LabelStudio, workplace: Workplace, project: Project, digits: Pool, serve: Serve
):
    """First tasks, columns and counts are the API's; who keeps a doubted label is not asked about it again."""
    truth = _fill(project, digits)
    tasks = list(truth)
    wrong = tasks[:WRONG]
    for task in tasks[:LABELLED]:
        others = [label for label in digits.labels if label != truth[task]]
        project.annotate(task, others[0] if task in wrong else truth[task])
    version = train(workplace, project.id, TRAINING).version
    with serve(workplace, version=version) as server:
        rank(workplace, project.id, server.url)
        tabs = _tabs(studio, project)
        assert list(tabs)[:1] == ["Label next"]
        assert list(tabs)[-1] == "Default"

        page.goto(project.url)  # whoever opens the project is shown what comes next
        _check_list(page, studio, tabs["Label next"])
        expect(page.get_by_text("Prediction score")).to_be_visible()
        keep_picture(page, "tab-label-next")

        _open(page, project, tabs["Look again"])
        doubted = _check_list(page, studio, tabs["Look again"])
        assert set(wrong) & set(doubted)
        row = _rows(page).first
        expect(row).to_contain_text("looks like")
        keep_picture(page, "tab-look-again")

        _open(page, project, tabs["Random holdout"])
        held = _check_grid(page, studio, tabs["Random holdout"])
        blank = {task.id for task in project.tasks() if not task.labelled and not task.predictions[0].shown}
        assert set(held) <= blank
        keep_picture(page, "tab-random-holdout")


def _fill(project: Project, digits: Pool) -> Mapping[int, str]:
    """Fill a project, and return the truth of each task, in the order of their numbers."""
    project.upload({image.name: image.path.read_bytes() for image in digits.images})
    truth = {image.name: image.label for image in digits.images}
    return {task.id: truth[task.file] for task in project.tasks()}


def _tabs(studio: LabelStudio, project: Project) -> dict[str, int]:
    """Numbers by title, from left to right."""
    return {view["data"]["title"]: view["id"] for view in studio.client().get("/api/dm/views/", project=project.id)}


def _held(studio: LabelStudio, tab: int) -> Sequence[int]:
    """The tasks of a tab, in its order."""
    reply: Any = studio.client().get("/api/tasks/", view=tab, page_size=1000)
    assert reply["total"] == len(reply["tasks"])
    return [task["id"] for task in reply["tasks"]]


def _open(page: Page, project: Project, tab: int) -> None:
    page.goto(f"{project.url}?tab={tab}")


def _rows(page: Page) -> Any:
    return page.get_by_test_id("table-row-wrapper")


def _check_list(page: Page, studio: LabelStudio, tab: int) -> Sequence[int]:
    """Compare what is shown of a tab with what the API says; return that."""
    held = _held(studio, tab)
    _rows(page).first.wait_for()
    expect(page.get_by_title("Filtered tasks")).to_have_text(str(len(held)), timeout=PATIENCE_MS)
    count = min(5, len(held))
    assert [int(_rows(page).nth(number).inner_text().split()[0]) for number in range(count)] == list(held[:count])
    return held


def _check_grid(page: Page, studio: LabelStudio, tab: int) -> Sequence[int]:
    """The same for a grid of images."""
    held = _held(studio, tab)
    cells = page.locator(".dm-grid-view__cell")
    cells.first.wait_for()
    expect(page.get_by_title("Filtered tasks")).to_have_text(str(len(held)), timeout=PATIENCE_MS)
    count = min(5, len(held))
    assert [int(cells.nth(number).inner_text().split()[0]) for number in range(count)] == list(held[:count])
    return held


def _data(studio: LabelStudio, tab: int) -> dict[str, Any]:
    data: dict[str, Any] = studio.client().get(f"/api/dm/views/{tab}/")["data"]
    return json.loads(json.dumps(data))
