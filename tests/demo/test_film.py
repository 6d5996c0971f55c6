"""A moving picture, from what a page showed."""

import io

from PIL import Image

from demo.film import Film


class _Page:
    """Shows one colour after the other."""

    def __init__(self, *colours):
        self._colours = iter(colours)
        self.captions = []

    def evaluate(self, _, caption):
        self.captions.append(caption)

    def screenshot(self, **_):
        shown = io.BytesIO()
        Image.new("RGB", (120, 80), next(self._colours)).save(shown, "PNG")
        return shown.getvalue()


def test_a_film_has_a_frame_for_each_shot(tmp_path):
    """In order, as long as asked for, in colours of their own, over and over."""
    page = _Page("#ff0000", "#00ff00", "#0000ff")
    film = Film(page, width=60)
    for caption, seconds in (("one", 1), ("two", 0.5), ("three", 2)):
        film.shoot(caption, seconds)
    film.save(tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as gif:
        frames = []
        for number in range(gif.n_frames):
            gif.seek(number)
            frames.append((gif.convert("RGB").getpixel((30, 20)), gif.info["duration"]))
        assert gif.size == (60, 40)
        assert gif.info["loop"] == 0
    assert page.captions == ["one", "two", "three"]
    assert frames == [((255, 0, 0), 1000), ((0, 255, 0), 500), ((0, 0, 255), 2000)]
