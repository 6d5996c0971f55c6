from pathlib import Path

from demo.pool import Pool, PoolImage
from demo.worth import Worth, measure


def test_labels_count_as_right_and_guesses_where_they_are():
    """Of thirty common and one rare class, what is labelled or guessed rightly counts, once."""
    labels = ["ant"] * 30 + ["yak"]
    pool = Pool(("ant", "yak"), tuple(PoolImage(Path(), f"{index}", label) for index, label in enumerate(labels)))
    guesses = {f"{index}": "ant" for index in range(10, 31)}
    assert pool.rare == {"yak"}
    assert measure(pool, ["0", "1"], guesses) == Worth(labels=2, rare_labelled=0, rare_right=0, right=22 / 31)
    assert measure(pool, ["0", "30"], guesses) == Worth(labels=2, rare_labelled=1, rare_right=1, right=22 / 31)
