from trainer.labelstudio.tasks import PoolTask
from trainer.scoring import portions
from trainer.scoring.portions import LEAST_TASKS, MOST_TASKS, Portions


def pool(count):
    return [PoolTask(number, {"image": f"http://images/{number}.png"}) for number in range(1, count + 1)]


def numbers(portion):
    return [task.id for task in portion]


def test_portions_grow_to_what_is_answered_in_two_seconds():
    waiting = Portions(pool(100_000))
    sizes = []
    for _ in range(5):
        sizes.append(len(portion := waiting.take()))
        waiting.note(portion, (), seconds=0.001)
    assert sizes == [LEAST_TASKS, 4 * LEAST_TASKS, 16 * LEAST_TASKS, MOST_TASKS, MOST_TASKS]
    waiting.note(waiting.take(), (), seconds=20.0)
    portion = waiting.take()
    assert len(portion) == MOST_TASKS / 10
    waiting.note(portion, (), seconds=1000.0)
    assert len(waiting.take()) == LEAST_TASKS  # one of the server's batches


def test_tasks_that_had_to_wait_too_long_wait_again():
    waiting = Portions(pool(portions._TRIES * 4 * LEAST_TASKS))
    waiting.note(waiting.take(), (), seconds=0.01)
    for _ in range(portions._TRIES + 1):
        waiting._size = 4 * LEAST_TASKS
        portion = waiting.take()
        assert waiting.note(portion, numbers(portion), seconds=90.0) == set()
    assert len(waiting.take()) == LEAST_TASKS
