"""A headless Chromium of this machine's own, and what somebody sees in it who is logged in to Label Studio."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from demo.label_studio import EMAIL, PASSWORD
from demo.processes import DemoError

_NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000  # Label Studio's own code is some megabytes to load
_OWN = ("http://127.0.0.1:", "data:", "blob:")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Run a browser for as long as the block lasts."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        raise DemoError(f"needs a browser, found none of {', '.join(_NAMES)}; apt install chromium brings one")
    # Chromium's own sandbox refuses to run for root.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@contextmanager
def logged_in(browser: Browser, url: str, *, width: int = 1360, height: int = 820) -> Iterator[Page]:
    """Open a page of somebody who is logged in to the Label Studio at `url`; it asks nothing of other machines."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE_MS)
    page.route(lambda address: not address.startswith(_OWN), lambda route: route.abort())
    page.goto(f"{url}/user/login/")
    page.fill("input[name=email]", EMAIL)
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url(lambda address: "login" not in address, wait_until="domcontentloaded")
    yield page
    page.close()
