from hypothesis import given
from hypothesis import strategies as st

from contract.errors import FetchError
from tests.trainer.report.test_thumbnails import encoded
from trainer.ranking.predictions import Planned
from trainer.ranking.thumbnails import SHOWN, choose, show

REGION = {"value": {"choices": ["cat", "dog"]}, "score": 0.75}

items = st.lists(
    st.builds(
        Planned,
        task=st.integers(1, 999),
        score=st.floats(0, 1),
        result=st.just([]) | st.floats(0, 1).map(lambda score: [{**REGION, "score": score}]),
        reason=st.just("why"),
        bald=st.none() | st.floats(0, 0.7),
        held_out=st.booleans(),
    ),
    unique_by=lambda item: item.task,
    max_size=40,
)


@given(items)
def test_each_kind_holds_what_its_name_says(planned):
    """The head as it is; by falling BALD and by falling probability those that chance has not placed."""
    chosen = choose(planned)
    assert chosen.first == planned[:SHOWN]
    placed = [item for item in planned if not item.held_out]
    balds = sorted((item.bald for item in placed if item.bald is not None), reverse=True)
    assert [item.bald for item in chosen.uncertain] == balds[:SHOWN]
    probabilities = sorted((item.result[0]["score"] for item in placed if item.result), reverse=True)
    assert [item.result[0]["score"] for item in chosen.confident] == probabilities[:SHOWN]
    assert not any(item.held_out for item in (*chosen.uncertain, *chosen.confident))


def test_images_that_cannot_be_had_are_left_out_and_the_others_keep_their_order():
    """A thumbnails with a gap is better than none."""

    def fetch(task):
        if task == 2:
            raise FetchError("gone")
        return b"no image" if task == 3 else encoded(8, 8)

    planned = [Planned(task, task / 10, [REGION], "why", bald=0.5, held_out=False) for task in (1, 2, 3, 4)]
    asked = []
    covers = Planned(5, 0.9, [], "covers", bald=None, held_out=False)
    shown = show([*planned, covers, planned[0]], lambda task: asked.append(task) or fetch(task)).values()
    assert sorted(asked) == [1, 2, 3, 4, 5]
    assert [(image.task, image.label, image.probability, image.bald) for image in shown] == [
        (1, "cat, dog", 0.75, 0.5),
        (4, "cat, dog", 0.75, 0.5),
        (5, None, None, None),
    ]
