"""Headless Chromium: pages of a user logged in to Label Studio, and animated GIFs of them."""

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
PATIENCE_MS = 60_000  # Label Studio loads several megabytes of JavaScript
_LOCAL_URLS = ("http://127.0.0.1:", "data:", "blob:")
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
    """Context manager for a running browser; raises DemoError if none is installed."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        raise DemoError(f"found no browser ({', '.join(_NAMES)}); run apt install chromium")
    # Chromium's sandbox does not work for root.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@contextmanager
def logged_in(browser: Browser, url: str, *, width: int = 1360, height: int = 820) -> Iterator[Page]:
    """Context manager for a page logged in to the Label Studio at `url`; requests to other hosts are blocked."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE_MS)
    page.route(lambda address: not address.startswith(_LOCAL_URLS), lambda route: route.abort())
    page.goto(f"{url}/user/login/")
    page.fill("input[name=email]", EMAIL)
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url(lambda address: "login" not in address, wait_until="domcontentloaded")
    yield page
    page.close()


@dataclass(slots=True)
class Film:
    """Screenshots of a page, to be saved as an animated GIF."""

    page: Page
    width: int
    """Width of the GIF in pixels; the height keeps the aspect ratio."""
    _frames: list[Image.Image] = field(default_factory=list)
    _milliseconds: list[int] = field(default_factory=list)

    def shoot(self, caption: str, seconds: float = 1.0) -> None:
        """Add a screenshot with a caption, shown for `seconds`."""
        self.page.evaluate(_CAPTION, caption)
        frame = Image.open(io.BytesIO(self.page.screenshot(animations="disabled"))).convert("RGB")
        height = round(frame.height * self.width / frame.width)
        self._frames.append(frame.resize((self.width, height), Image.Resampling.LANCZOS))
        self._milliseconds.append(round(1000 * seconds))

    def save(self, path: Path) -> None:
        """Write an endless GIF. All frames share one palette, so that unchanged areas compress to nothing."""
        all_colours = Image.new("RGB", (self.width, sum(frame.height for frame in self._frames)))
        for number, frame in enumerate(self._frames):
            all_colours.paste(frame, (0, number * frame.height))
        palette = all_colours.quantize(_COLOURS)
        first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self._frames]
        first.save(path, save_all=True, append_images=others, duration=self._milliseconds, loop=0)
