from trainer.labelstudio.tasks import PoolTask
from trainer.scoring import task_batches
from trainer.scoring.task_batches import LEAST_TASKS, MOST_TASKS, TaskBatches


def pool(count):
    return [PoolTask(number, {"image": f"http://images/{number}.png"}) for number in range(1, count + 1)]


def numbers(batch):
    return [task.id for task in batch]


def test_batches_grow_to_what_is_answered_in_two_seconds():
    waiting = TaskBatches(pool(100_000))
    sizes = []
    for _ in range(5):
        sizes.append(len(batch := waiting.take()))
        waiting.record(batch, (), seconds=0.001)
    assert sizes == [LEAST_TASKS, 4 * LEAST_TASKS, 16 * LEAST_TASKS, MOST_TASKS, MOST_TASKS]
    waiting.record(waiting.take(), (), seconds=20.0)
    batch = waiting.take()
    assert len(batch) == MOST_TASKS / 10
    waiting.record(batch, (), seconds=1000.0)
    assert len(waiting.take()) == LEAST_TASKS  # one of the server's batches


def test_tasks_that_had_to_wait_too_long_wait_again():
    waiting = TaskBatches(pool(task_batches._MOST_TRIES * 4 * LEAST_TASKS))
    waiting.record(waiting.take(), (), seconds=0.01)
    for _ in range(task_batches._MOST_TRIES + 1):
        waiting._size = 4 * LEAST_TASKS
        batch = waiting.take()
        assert waiting.record(batch, numbers(batch), seconds=90.0) == set()
    assert len(waiting.take()) == LEAST_TASKS
