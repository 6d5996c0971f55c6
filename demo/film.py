"""A moving picture of a browser's page, frame by frame, each with a line that says what is to be seen."""

import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

_COLOURS = 128
_CAPTION = """text => {
  const line = document.getElementById('caption') ?? document.body.appendChild(document.createElement('div'));
  line.id = 'caption';
  line.textContent = text;
  line.style = 'position:fixed; left:0; right:0; bottom:0; z-index:99999; pointer-events:none; padding:12px 20px;' +
    'background:#1f3a5f; color:#fff; font:600 20px sans-serif';
}"""


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
