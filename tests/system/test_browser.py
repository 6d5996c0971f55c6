"""What an annotator sees: a real browser on a real Label Studio, after a ranking and nothing clicked by hand."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

from demo.label_studio import EMAIL, PASSWORD, LabelStudio
from demo.pool import Pool
from demo.product import CHECKOUT, Workplace, rank, train
from demo.project import Project
from tests.contract import test_spelling as spelling
from tests.system.conftest import QUICK_TRAINING, Serve

ARTIFACTS = CHECKOUT / "tests" / "artifacts"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LABELLED = 20
PATIENCE_MS = 60_000  # Label Studio's own code is some megabytes to load


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium of this machine's own."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser, found none of {', '.join(BROWSERS)}; apt install chromium brings one")
    # Chromium's own sandbox refuses to run for root.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, studio: LabelStudio) -> Iterator[Page]:
    """A page of somebody who is logged in; what is not on this machine is not asked for."""
    page = browser.new_page(viewport={"width": 1360, "height": 820})
    page.set_default_timeout(PATIENCE_MS)
    page.route(lambda url: not url.startswith(("http://127.0.0.1:", "data:", "blob:")), _refuse)
    page.goto(f"{studio.url}/user/login/")
    page.fill("input[name=email]", EMAIL)
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "login" not in url, wait_until="domcontentloaded")
    yield page
    page.close()


def _refuse(route: Route) -> None:
    route.abort()


def test_an_annotator_gets_the_ranking_s_first_task(
    page: Page, workplace: Workplace, project: Project, digits: Pool, serve: Serve
):
    """The Data Manager sorted by prediction score begins with it, and the label stream serves it."""
    project.upload({image.name: image.path.read_bytes() for image in digits.images})
    task_ids = {task.file: task.id for task in project.tasks()}
    for image in digits.images[:LABELLED]:
        project.annotate(task_ids[image.name], image.label)
    version = train(workplace, project.id, QUICK_TRAINING).version
    with serve(workplace, version=version) as server:
        rank(workplace, project.id, [server.url])
        _look_at_product(page, server.url, version)
    ranked = [task for task in project.tasks(ordering="tasks:predictions_score") if not task.labelled]
    first = ranked[0]
    assert [prediction.model_version for prediction in first.predictions] == [version]

    page.goto(project.add_tab("Label these first", ordering="tasks:predictions_score"))
    rows = page.get_by_test_id("table-row-wrapper")
    rows.first.wait_for()
    shown = [int(rows.nth(number).inner_text().split()[0]) for number in range(5)]
    _keep(page, "data-manager")
    assert shown == [task.id for task in ranked[:5]]
    assert version in re.sub(r"\s", "", rows.first.inner_text())

    page.get_by_text("Label All Tasks").click()
    page.get_by_role("button", name="Submit").first.wait_for()
    served = page.locator("[class*=current-task__task-id]").inner_text().split()[0]
    _keep(page, "label-stream")
    assert int(served) == first.id


def test_addresses_are_read_as_this_browser_reads_them(browser: Browser):
    """The tables that the unit tests go by are what a real browser says, of addresses and of images within tasks."""
    page = browser.new_page()
    href = "address => { try { return new URL(address).href } catch { return null } }"
    assert {address: page.evaluate(href, address) for address in spelling.ADDRESSES} == spelling.ADDRESSES
    assert [page.evaluate(href, address) for address in spelling.NO_ADDRESSES] == [None] * len(spelling.NO_ADDRESSES)
    shown = "uri => { const image = new Image(); image.src = uri; return image.decode().then(() => true, () => false) }"
    assert {uri: page.evaluate(shown, uri) for uri in spelling.DATA_URIS} == spelling.DATA_URIS
    page.close()


def _look_at_product(page: Page, url: str, version: str) -> None:
    """Open the server's own page, wide and as narrow as a phone; nothing on it is wider than the screen."""
    page.goto(url)
    assert version in page.inner_text("body")
    _keep(page, "server", full=True)
    wide = page.viewport_size
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    _keep(page, "server-phone", full=True)
    assert wide
    page.set_viewport_size(wide)


def _keep(page: Page, name: str, *, full: bool = False) -> None:
    """Leave a screenshot for people to look at."""
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=full)
