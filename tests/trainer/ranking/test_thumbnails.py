from contract.errors import FetchError
from tests.trainer.ranking.rig import png
from trainer.ranking.predictions import Planned
from trainer.ranking.thumbnails import show

REGION = {"value": {"choices": ["cat", "dog"]}, "score": 0.75}


def test_images_that_cannot_be_had_are_left_out_and_the_others_keep_their_order():
    def fetch(task):
        if task == 2:
            raise FetchError("gone")
        return b"no image" if task == 3 else png()

    planned = [Planned(task, task / 10, [REGION], "why", bald=0.5, held_out=False) for task in (1, 2, 3, 4)]
    asked = []
    covers = Planned(5, 0.9, [], "covers", bald=None, held_out=False)
    shown = show([*planned, covers], lambda task: asked.append(task) or fetch(task))
    assert sorted(asked) == [1, 2, 3, 4, 5]
    assert [(image.task, image.label, image.probability, image.bald) for image in shown["first"]] == [
        (1, "cat, dog", 0.75, 0.5),
        (4, "cat, dog", 0.75, 0.5),
        (5, None, None, None),
    ]
    assert [[image.task for image in shown[kind]] for kind in ("most_uncertain", "most_confident")] == [[1, 4], [1, 4]]
