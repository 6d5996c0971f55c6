from trainer.labelstudio.tasks import PoolTask
from trainer.scoring import portions
from trainer.scoring.portions import LEAST_TASKS, MOST_TASKS, Portions


def pool(count):
    return [PoolTask(number, {"image": f"http://images/{number}.png"}) for number in range(1, count + 1)]


def numbers(portion):
    return [task.id for task in portion]


def test_portions_grow_to_what_is_answered_in_two_seconds():
    """Four times as large from one to the next, however fast, and up to a bound."""
    waiting = Portions(pool(100_000))
    sizes = []
    for _ in range(5):
        sizes.append(len(portion := waiting.take()))
        waiting.note(portion, (), seconds=0.001)
    assert sizes == [LEAST_TASKS, 4 * LEAST_TASKS, 16 * LEAST_TASKS, MOST_TASKS, MOST_TASKS]
    waiting.note(waiting.take(), (), seconds=20.0)
    assert len(waiting.take()) == MOST_TASKS / 10


def test_a_slow_server_is_asked_for_one_of_its_batches_at_a_time():
    """As one is that runs the backbone for every image."""
    waiting = Portions(pool(1000))
    for _ in range(3):
        portion = waiting.take()
        assert len(portion) == LEAST_TASKS
        waiting.note(portion, (), seconds=30.0)


def test_tasks_that_had_to_wait_too_long_wait_again():
    """Behind the others. As many as there were of them they were too many, and nothing is held against the images."""
    waiting = Portions(pool(portions._TRIES * 4 * LEAST_TASKS))
    waiting.note(waiting.take(), (), seconds=0.01)
    for _ in range(portions._TRIES + 1):
        waiting._size = 4 * LEAST_TASKS
        portion = waiting.take()
        assert waiting.note(portion, numbers(portion), seconds=90.0) == set()
    assert len(waiting.take()) == LEAST_TASKS


def test_an_image_that_never_gets_its_turn_is_given_up():
    """After five small portions that said so of it; the others of these portions are not."""
    waiting = Portions(pool(2))
    assert waiting.note(waiting.take(), {2}, seconds=90.0) == set()
    for _ in range(3):
        portion = waiting.take()
        assert numbers(portion) == [2]
        assert waiting.note(portion, {2}, seconds=90.0) == set()
    assert waiting.note(waiting.take(), {2}, seconds=90.0) == {2}
    assert waiting.take() == []
