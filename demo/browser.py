"""A headless Chromium of this machine: what somebody who is logged in to Label Studio sees in it, and a film of it."""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from demo.label_studio import EMAIL, PASSWORD
from demo.processes import DemoError

_NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000  # Label Studio's own code is some megabytes to load
_OWN = ("http://127.0.0.1:", "data:", "blob:")
_COLOURS = 128
_CAPTION = """text => {
  const line = document.getElementById('caption') ?? document.body.appendChild(document.createElement('div'));
  line.id = 'caption';
  line.textContent = text;
  line.style = 'position:fixed; left:0; right:0; bottom:0; z-index:99999; pointer-events:none; padding:12px 20px;' +
    'background:#1f3a5f; color:#fff; font:600 20px sans-serif';
}"""


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


@dataclass(slots=True)
class Film:
    """What was seen of a page so far."""

    page: Page
    width: int
    """In pixels, of the picture; its height follows."""
    _frames: list[Image.Image] = field(default_factory=list)
    _milliseconds: list[int] = field(default_factory=list)

    def shoot(self, caption: str, seconds: float = 1.0) -> None:
        """Add what is to be seen now, for so long."""
        self.page.evaluate(_CAPTION, caption)
        frame = Image.open(io.BytesIO(self.page.screenshot(animations="disabled"))).convert("RGB")
        height = round(frame.height * self.width / frame.width)
        self._frames.append(frame.resize((self.width, height), Image.Resampling.LANCZOS))
        self._milliseconds.append(round(1000 * seconds))

    def save(self, path: Path) -> None:
        """Write a GIF that begins again at its end; all frames share their colours, so that only changes take room."""
        all_colours = Image.new("RGB", (self.width, sum(frame.height for frame in self._frames)))
        for number, frame in enumerate(self._frames):
            all_colours.paste(frame, (0, number * frame.height))
        palette = all_colours.quantize(_COLOURS)
        first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self._frames]
        first.save(path, save_all=True, append_images=others, duration=self._milliseconds, loop=0)
