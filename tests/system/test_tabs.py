"""The tabs of the Data Manager in a real browser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from contract.scores.holdout import is_held_out
from contract.versions.repository import Repository
from demo.browser import PATIENCE_MS
from demo.label_studio import LabelStudio
from demo.pool import Pool, read_pool, write_digits
from demo.product import Workplace, rank, train
from demo.project import Project
from tests.system.conftest import SMALL_NETWORK, Serve, import_pool, save_screenshot
from trainer.labels.annotations import aggregate, is_confirmed

TRAINING = (*SMALL_NETWORK, "--train", "classifier", "--precision", "fp32")
HOLDOUT = ("--holdout-share", "0.3")
RANKING = (*HOLDOUT, "--sure", "0.3", "--force")
HELD_OUT, OTHERS, WRONG = 36, 70, 3
"""Labels of the random holdout, enough to certify a lower precision than 98 %; other labels; wrong ones among those."""


@pytest.fixture
def digits(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Handwritten digits of three classes."""
    root = tmp_path_factory.mktemp("digits")
    write_digits(root, counts=(80, 70, 50))
    return read_pool(root, limit=200, seed=1)


class DataManager:
    """The tabs of a project, in the API and in a browser."""

    def __init__(self, page: Page, studio: LabelStudio, project: Project) -> None:
        self.page = page
        self._client = studio.client()
        self.project = project

    def task(self, number: int) -> Any:
        return self._client.get(f"/api/tasks/{number}/")

    def open(self, title: str, *, grid: bool = False) -> Locator:
        """Open a tab and check it."""
        self.page.goto(self.project.tab(title))
        return self.check(title, grid=grid)

    def check(self, title: str, *, grid: bool = False) -> Locator:
        """Check that the open tab shows the tasks of the API, save a screenshot, and return its rows or cells."""
        tasks = self.project.tasks_in(title)
        shown = self.page.locator(".lsf-grid-view__cell") if grid else self.page.get_by_test_id("table-row-wrapper")
        shown.first.wait_for()
        expect(self.page.get_by_title("Filtered tasks")).to_have_text(str(len(tasks)), timeout=PATIENCE_MS)
        first = [int(shown.nth(number).inner_text().split()[0]) for number in range(min(5, len(tasks)))]
        assert first == list(tasks[: len(first)])
        save_screenshot(self.page, "tab-" + re.sub(r"\W+", "-", title.lower()).strip("-"))
        return shown


def test_tabs_match_the_api_and_the_next_round_knows_what_was_done_there(
    page: Page, studio: LabelStudio, workplace: Workplace, project: Project, digits: Pool, serve: Serve
):
    """Labels that were confirmed in bulk or kept do not come back."""
    wrong = _label_with_mistakes(project, digits)
    manager = DataManager(page, studio, project)
    before = train(workplace, project.id, (*TRAINING, *HOLDOUT))
    with serve(workplace, version=before["version"]) as server:
        rank(workplace, project.id, server.url, (*HOLDOUT, "--sure", "0.98"))
        assert list(project.tabs()) == ["Label next", "Look again", "Random holdout", "Default"]
        holdout = project.tasks_in("Random holdout")
        manager.open("Random holdout", grid=True)
        assert not any(manager.task(task)["predictions"][0]["result"] for task in holdout[:5])

        rank(workplace, project.id, server.url, RANKING)
        sure = [title for title in project.tabs() if title.startswith("Sure: ")]
        assert sure
        assert {*project.tabs()} == {"Label next", *sure, "Look again", "Default"}
        _check_status_page(page, server.url, before["version"])
        _check_label_next(manager)
        kept = _keep_doubted_label(manager, digits, wrong)
        largest = max(sure, key=lambda title: len(project.tasks_in(title)))
        confirmed, unticked = _confirm_all_but_one(manager, digits, largest)

        after = train(workplace, project.id, (*TRAINING, *HOLDOUT))
        manifest = Repository(workplace.models).read_manifest(after["version"])
        assert (after["labels"], manifest.training.confirmed) == (before["labels"], len(confirmed))
        server.wait_for(after["version"])
        rank(workplace, project.id, server.url, RANKING)
        offered = [task for each in project.tabs() if each.startswith("Sure: ") for task in project.tasks_in(each)]
        assert not {*confirmed, unticked} & {*offered}
        assert project.tasks_in("Label next")[0] == unticked
        if "Look again" in project.tabs():
            assert kept not in project.tasks_in("Look again")


def _label_with_mistakes(project: Project, digits: Pool) -> Sequence[int]:
    """Import the digits and label some of them, and return the tasks with wrong labels."""
    truth = import_pool(project, digits).truth
    tasks = np.array(list(truth))
    held_out = is_held_out(project.id, tasks, 0.3)
    others = tasks[~held_out][:OTHERS].tolist()
    wrong = others[:WRONG]
    for task in [*tasks[held_out][:HELD_OUT].tolist(), *others]:
        wrong_label = next(label for label in digits.labels if label != truth[task])
        project.annotate(task, wrong_label if task in wrong else truth[task])
    return wrong


def _check_label_next(manager: DataManager) -> None:
    """Check that the project opens with the tab Label next, and that Label All Tasks begins with its first task."""
    page = manager.page
    page.goto(manager.project.url)
    row = manager.check("Label next").filter(has_text="reason: ").first
    expect(row).to_contain_text("value: {choices: [")
    expect(page.get_by_text("Prediction score").first).to_be_visible()
    page.get_by_text("Label All Tasks").click()
    page.get_by_role("button", name="Submit").first.wait_for()
    task = int(page.locator("[class*=current-task__task-id]").inner_text().split()[0])
    assert task == manager.project.tasks_in("Label next")[0]


def _keep_doubted_label(manager: DataManager, digits: Pool, wrong: Sequence[int]) -> int:
    """Keep the most doubted label, check that its task leaves the tab, and return the task."""
    rows = manager.open("Look again")
    doubted = manager.project.tasks_in("Look again")
    assert {*wrong} & {*doubted}
    expect(rows.first).to_contain_text("looks like ")
    [given] = aggregate(manager.task(doubted[0]), "label", {*digits.labels})
    rows.first.click()
    page = manager.page
    update = page.get_by_text("Update", exact=True).first
    update.wait_for()
    page.wait_for_function("window.Htx?.annotationStore?.selected?.serializeAnnotation().length > 0")
    page.wait_for_timeout(1000)
    key = str(1 + digits.labels.index(given))
    page.keyboard.press(key)
    page.wait_for_function("window.Htx.annotationStore.selected.serializeAnnotation().length === 0")
    page.keyboard.press(key)
    page.wait_for_function("window.Htx.annotationStore.selected.serializeAnnotation().length > 0")
    with page.expect_response(lambda reply: reply.request.method == "PATCH" and "/annotations" in reply.url):
        update.click()
    assert aggregate(manager.task(doubted[0]), "label", {*digits.labels}) == {given}
    assert doubted[0] not in (manager.project.tasks_in("Look again") if len(doubted) > 1 else ())
    return doubted[0]


def _confirm_all_but_one(manager: DataManager, digits: Pool, title: str) -> tuple[Sequence[int], int]:
    """Untick the first task, confirm the others, and return the confirmed tasks and the unticked one."""
    cells, page = manager.open(title, grid=True), manager.page
    unticked, *confirmed = manager.project.tasks_in(title)
    menu = page.get_by_label("Tasks Actions")
    expect(menu).to_have_text(f"{len(confirmed) + 1} Tasks")
    cells.first.get_by_role("checkbox").click()
    expect(menu).to_have_text(f"{len(confirmed)} Task{'s' * (len(confirmed) > 1)}")
    menu.click()
    page.get_by_text("Create Annotations From Predictions").first.click()
    page.get_by_text("Choose predictions").wait_for()
    save_screenshot(page, "tab-sure-confirming")
    with page.expect_response(
        lambda reply: "predictions_to_annotations" in reply.url and reply.request.method == "POST"
    ):
        page.get_by_text("OK", exact=True).click()
    expect(page.get_by_title("Filtered tasks")).to_have_text("1", timeout=PATIENCE_MS)
    match = re.fullmatch(r"Sure: (.+) ≥(\d+) %", title)
    assert match
    label, precision = match[1], int(match[2])
    assert 30 <= precision < 100
    for task in confirmed:
        assert aggregate(manager.task(task), "label", {*digits.labels}) == {label}
        assert is_confirmed(manager.task(task))
    assert manager.project.tasks_in(title) == [unticked]
    return confirmed, unticked


def _check_status_page(page: Page, url: str, version: str) -> None:
    """Check that the server's page also fits the screen of a phone."""
    page.goto(url)
    assert version in page.inner_text("body")
    save_screenshot(page, "server", full=True)
    wide = page.viewport_size
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    save_screenshot(page, "server-phone", full=True)
    assert wide
    page.set_viewport_size(wide)
