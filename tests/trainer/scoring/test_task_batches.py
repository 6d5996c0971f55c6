from trainer.labelstudio.tasks import PoolTask
from trainer.scoring import task_batches
from trainer.scoring.task_batches import MAX_TASKS, MIN_TASKS, TaskBatches


def pool(count):
    return [PoolTask(number, {"image": f"http://images/{number}.png"}) for number in range(1, count + 1)]


def numbers(batch):
    return [task.id for task in batch]


def test_batches_grow_to_two_seconds_of_work():
    batches = TaskBatches(pool(100_000))
    sizes = []
    for _ in range(5):
        sizes.append(len(batch := batches.take()))
        batches.record(batch, (), seconds=0.001)
    assert sizes == [MIN_TASKS, 4 * MIN_TASKS, 16 * MIN_TASKS, MAX_TASKS, MAX_TASKS]
    batches.record(batches.take(), (), seconds=20.0)
    batch = batches.take()
    assert len(batch) == MAX_TASKS / 10
    batches.record(batch, (), seconds=1000.0)
    assert len(batches.take()) == MIN_TASKS  # one of the server's batches


def test_late_tasks_of_large_batches_are_queued_again():
    batches = TaskBatches(pool(task_batches._MAX_ATTEMPTS * 4 * MIN_TASKS))
    batches.record(batches.take(), (), seconds=0.01)
    for _ in range(task_batches._MAX_ATTEMPTS + 1):
        batches._size = 4 * MIN_TASKS
        batch = batches.take()
        assert batches.record(batch, numbers(batch), seconds=90.0) == set()
    assert len(batches.take()) == MIN_TASKS
