import re
from pathlib import Path

from demo.comparison import Outcome, measure, write_page
from demo.pool import Pool, PoolImage


def test_an_image_is_correct_if_it_is_labelled_or_predicted_correctly():
    """With 30 images of a common class and one of a rare class; each image counts once."""
    labels = ["ant"] * 30 + ["yak"]
    pool = Pool(("ant", "yak"), tuple(PoolImage(Path(), f"{index}", label) for index, label in enumerate(labels)))
    predicted = {f"{index}": "ant" for index in range(10, 31)}
    assert pool.rare == {"yak"}
    assert measure(pool, ["0", "1"], predicted) == Outcome(labels=2, rare_labelled=0, rare_correct=0, accuracy=22 / 31)
    assert measure(pool, ["0", "30"], predicted) == Outcome(labels=2, rare_labelled=1, rare_correct=1, accuracy=22 / 31)


def test_the_page_shows_the_first_images_of_each_order_and_the_outcomes(tmp_path: Path):
    """Images of rare classes are marked; the page loads no scripts."""
    images = tuple(PoolImage(tmp_path / f"{n}.png", f"{n}.png", "<yak>" if n < 2 else "ant") for n in range(60))
    pool = Pool(("<yak>", "ant"), images)
    outcomes = {"ranked": Outcome(9, 2, 2, 0.95), "random": Outcome(9, 1, 1, 0.905)}
    write_page(tmp_path / "page.html", pool, {"First": images, "Random": images[::-1]}, outcomes, origin="drawings")
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
