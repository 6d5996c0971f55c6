import pytest

from trainer.scoring.pool import group_failures
from trainer.scoring.scores import Failure


@pytest.mark.parametrize(
    ("detail", "description"),
    [
        ("task 5: its data must hold an image", "task 5: its data must hold an image"),
        ("expected an image in task 5", "expected an image in task 5"),
        ("like task 51's", "task 5: like task 51's"),
        ("no such file", "task 5: no such file"),
    ],
)
def test_descriptions_name_the_task_once(detail, description):
    assert group_failures([Failure(5, "no_image", detail)]) == f"1, such as {description}"
