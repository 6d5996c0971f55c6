import re
from pathlib import Path

from demo.comparison import Outcome, measure, write_page
from demo.pool import Pool, PoolImage


def test_labels_count_as_right_and_guesses_where_they_are():
    """Of thirty common and one rare class, what is labelled or guessed rightly counts, once."""
    labels = ["ant"] * 30 + ["yak"]
    pool = Pool(("ant", "yak"), tuple(PoolImage(Path(), f"{index}", label) for index, label in enumerate(labels)))
    guesses = {f"{index}": "ant" for index in range(10, 31)}
    assert pool.rare == {"yak"}
    assert measure(pool, ["0", "1"], guesses) == Outcome(labels=2, rare_labelled=0, rare_right=0, right=22 / 31)
    assert measure(pool, ["0", "30"], guesses) == Outcome(labels=2, rare_labelled=1, rare_right=1, right=22 / 31)


def test_the_page_shows_what_came_first_and_what_it_was_worth(tmp_path: Path):
    """Each order with its first images in their order, rare ones marked, beside the figures; nothing else is loaded."""
    images = tuple(PoolImage(tmp_path / f"{n}.png", f"{n}.png", "<yak>" if n < 2 else "ant") for n in range(60))
    pool = Pool(("<yak>", "ant"), images)
    outcomes = {"in this order": Outcome(9, 2, 2, 0.95), "at random": Outcome(9, 1, 1, 0.905)}
    write_page(tmp_path / "page.html", pool, {"First": images, "By chance": images[::-1]}, outcomes, origin="drawings")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    shown = re.findall(r'src="file://\S+/(\d+)\.png"', page)
    assert shown == [*map(str, range(24)), *map(str, range(59, 35, -1))]
    assert page.count('class="rare"') == page.count("&lt;yak&gt;</figcaption>") == 2
    assert "with 9 labels" in page
    assert re.findall(r"<td>([\d.]+%|\d of \d)</td>", page) == [
        "2 of 2",
        "1 of 2",
        "2 of 2",
        "1 of 2",
        "95.0%",
        "90.5%",
    ]
    assert "<script" not in page
