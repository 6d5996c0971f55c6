import logging
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from contract.errors import ConfigError, LabelnextError, TrainingError
from contract.versions.manifest import InputSpec
from tests.trainer.model.test_fit import move_columns
from tests.trainer.ranks import CPU, in_ranks
from tests.trainer.small import coloured_images, small_network, write_folders
from trainer.__main__ import main
from trainer.labels import sources as labels
from trainer.labels.dataset import load_pixels
from trainer.labels.image_cache import ImageCache
from trainer.model.fit import Recipe, compute_features, fit
from trainer.parallel import ALONE, World

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}

worlds = st.integers(1, 9).map(lambda size: [World(rank, size, rank, size) for rank in range(size)])


def test_torchruns_variables_say_who_else_there_is():
    """Without them a process is alone; the threads are left to who sets them."""
    assert World.read({}) == ALONE
    assert World.read(TORCHRUN) == World(5, 8, 1, 4)
    assert World.read(TORCHRUN | {"OMP_NUM_THREADS": "4"}).threads_are_set


@pytest.mark.parametrize(
    "wrong",
    [
        {"RANK": "8"},
        {"RANK": "-1"},
        {"LOCAL_RANK": ""},
        {"LOCAL_RANK": "4"},
        {"LOCAL_WORLD_SIZE": "9"},
        {"WORLD_SIZE": "0"},
        {"MASTER_ADDR": ""},
    ],
)
def test_variables_that_cannot_be_are_refused(wrong):
    """All are named with what they hold."""
    (name, value) = next(iter(wrong.items()))
    with pytest.raises(ConfigError, match=f"{name}={value}( |;).*torchrun"):
        World.read(TORCHRUN | wrong)


@given(worlds, st.integers(0, 60))
def test_parts_cover_all_rows_once(ranks, count):
    """Side by side in the order of the ranks, and of equal length but for one row."""
    parts = [range(count)[world.part(count)] for world in ranks]
    assert [row for part in parts for row in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(worlds, st.integers(1, 40))
def test_shares_of_a_batch_cover_each_sample_once(ranks, count):
    """Whatever the number of ranks; one without a sample has tensors of the right shape all the same."""
    batch = [(torch.full((2, 3), number), number) for number in range(count)]
    shares = [world.share_of_batch(batch) for world in ranks]
    assert sorted(torch.cat([targets for _, targets in shares]).tolist()) == list(range(count))
    for inputs, targets in shares:
        assert inputs.shape == (len(targets), 2, 3)
        assert (inputs[:, 0, 0] == targets).all()
    assert max(len(targets) for _, targets in shares) - min(len(targets) for _, targets in shares) <= 1


# ---- three processes that do all there is to do together, once for all tests


def plain_network():
    """Batch normalisation and no chance: what it becomes depends on the batches alone."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


def fit_plain(count, *, several, world=ALONE):
    """Return the weights and losses of a fit on `count` images, with batches of 4."""
    images, targets = coloured_images(np.random.default_rng(1), count, size=16)
    targets = np.where(np.arange(count) % 4, targets, 0)  # classes do not weigh alike
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    module = plain_network()
    module(inputs[:2])
    torch.manual_seed(5)
    if several:
        targets = np.eye(3, dtype=np.uint8)[targets] | np.eye(3, dtype=np.uint8)[(targets + np.arange(count)) % 3]
    recipe = Recipe(0.05, epochs=3, batch_images=4)
    fitted = fit(module, inputs, targets, classes=3, recipe=recipe, device=CPU, world=world)
    return module.state_dict(), fitted.losses


class FailsOnOneRank(nn.Module):
    """Returns what is not finite at the third call, on the last rank alone."""

    def __init__(self, world):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.dropout = nn.Dropout(0.5)
        self.fails = world.rank == world.size - 1
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        wrong = float("nan") if self.fails and self.calls == 3 else 1.0
        return self.linear(self.dropout(inputs)) * wrong


def fit_failing(world, *, rate=0.05):
    points = np.random.default_rng(3).normal(size=(24, 4))
    torch.manual_seed(0)
    module = FailsOnOneRank(world)
    fitted = fit(
        module,
        torch.from_numpy(points).float(),
        (points[:, 0] > 0).astype(np.int64),
        classes=2,
        recipe=Recipe(rate, epochs=2, batch_images=8),
        device=CPU,
        world=world,
    )
    return module.state_dict(), fitted


def refusal(work, *arguments, **options):
    try:
        work(*arguments, **options)
    except TrainingError as err:
        return str(err)
    return None


def draw_dropout(world):
    """Return what a replica's dropout leaves, and the state of the generator that shuffles before and after."""
    torch.manual_seed(7)
    module = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5))
    with world.replicated(module) as replica:
        before = torch.get_rng_state()
        left = [replica(torch.ones(1, 4)).detach() != 0 for _ in range(2)]
    return left, before, torch.get_rng_state()


def features(world=ALONE, *, count):
    torch.manual_seed(0)
    images, _ = coloured_images(np.random.default_rng(1), count)
    return compute_features(small_network().backbone, torch.from_numpy(images), device=CPU, title="", world=world)


def pixels(folders, world=ALONE):
    pool = world.from_first(lambda: labels.from_folder(folders))
    return load_pixels(
        pool, spec=InputSpec(32, 32), fetcher=None, cache=ImageCache(Path()), progress=False, world=world
    )


def do_all(world, folders):
    """Return what came of each piece of work on this rank."""
    opened = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    read = pixels(folders, world)
    names = {Path(name).name for name in opened if name.endswith(".png")}
    return {
        "pixels": read,
        "opened": names,
        "threads": torch.get_num_threads(),
        "level": logging.getLogger("trainer").getEffectiveLevel(),
        "from first": world.from_first(lambda: f"by {world.rank}"),
        "gather": world.gather(world.rank),
        "plain": {key: fit_plain(*key[:1], several=key[1], world=world) for key in PLAIN},
        "moved": move_columns(RARE, clip_norm=1e3, batch_images=16, world=world),
        "failing": fit_failing(world),
        "refusal": refusal(fit_failing, world, rate=1e30),
        "dropout": draw_dropout(world),
        "features": {count: features(world, count=count) for count in (2, 40)},
    }


RARE = np.repeat(np.arange(2), (153, 7))
"""Targets of which one class has few."""
PLAIN = [(11, False), (9, False), (9, True)]
"""Of 11 the last batch has 3 images, one a rank; of 9 it has 1, and two ranks have none."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Class folders with one file that is no image."""
    root = write_folders(tmp_path_factory.mktemp("images"), each=4)
    (root / "red" / "broken.png").write_bytes(b"not a picture")
    return root


@pytest.fixture(scope="module")
def done(tmp_path_factory, folders):
    """What three ranks came to."""
    outcomes = in_ranks(3, do_all, tmp_path_factory.mktemp("ranks"), folders)
    assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes
    return outcomes


@pytest.mark.slow
class TestThreeRanks:
    @pytest.mark.parametrize("case", PLAIN)
    def test_train_what_one_process_trains(self, done, case):
        """Weights, batch statistics and losses after nine steps of momentum, decay, clipping and schedule."""
        weights, losses = fit_plain(case[0], several=case[1])
        for outcome in done:
            found, found_losses = outcome["plain"][case]
            torch.testing.assert_close(found, weights, rtol=0, atol=1e-5)
            np.testing.assert_allclose(found_losses, losses, rtol=1e-5)

    def test_are_moved_alike_by_all_classes(self, done):
        """Though most shares of batches hold no image of the rare one; each image is shown by one rank."""
        for outcome in done:
            np.testing.assert_allclose(outcome["moved"][0], 0.5, rtol=0.05)
        images = np.concatenate([outcome["moved"][1] for outcome in done])
        assert np.bincount(images).tolist() == [20] * len(RARE)

    def test_end_with_equal_weights(self, done):
        """To the bit, dropout or not."""
        for outcome in done[1:]:
            for key in PLAIN:
                assert states_equal(outcome["plain"][key][0], done[0]["plain"][key][0])
            assert states_equal(outcome["failing"][0], done[0]["failing"][0])

    def test_start_again_together(self, done):
        """A loss that is not finite on one rank is so for all; losses and rate are alike after it."""
        (first, *others) = [outcome["failing"][1] for outcome in done]
        assert (first.attempts, first.recipe.learning_rate) == (2, pytest.approx(0.005))
        assert others == [first] * 2

    def test_fail_together(self, done):
        """With the message that one process has."""
        assert done[0]["refusal"].startswith("diverged at learning rate 1e+30 and at 1e+29")
        assert {outcome["refusal"] for outcome in done} == {done[0]["refusal"]}

    def test_draw_dropout_of_their_own_and_shuffle_alike(self, done):
        """The generator that shuffles is the same everywhere, and dropout leaves it alone."""
        masks = [mask.numpy().tobytes() for outcome in done for mask in outcome["dropout"][0]]
        assert len(set(masks)) == 6
        (_, state, _) = done[0]["dropout"]
        for _, before, after in (outcome["dropout"] for outcome in done):
            assert torch.equal(before, state)
            assert torch.equal(after, state)

    @pytest.mark.parametrize("count", [2, 40])
    def test_compute_each_a_part_of_the_features(self, done, count):
        """And all have the whole, also where there are fewer images than ranks."""
        expected = features(count=count)
        for outcome in done:
            torch.testing.assert_close(outcome["features"][count], expected, rtol=1e-5, atol=1e-6)

    def test_read_each_a_part_of_the_images(self, done, folders):
        """Every file is opened by one rank, and all know all pixels, targets and unreadable ones."""
        expected = pixels(folders)
        for outcome in done:
            found = outcome["pixels"]
            np.testing.assert_array_equal(found.images, expected.images)
            np.testing.assert_array_equal(found.targets, expected.targets)
            np.testing.assert_array_equal(found.groups, expected.groups)
            assert found.unreadable == expected.unreadable
        opened = [name for outcome in done for name in outcome["opened"]]
        assert sorted(opened) == sorted(path.name for path in folders.rglob("*.png"))

    def test_share_the_cores(self, done):
        """Six threads are two for each of three processes, where nobody has said how many they should be."""
        assert [outcome["threads"] for outcome in done] == [2] * 3

    def test_know_what_the_first_made_and_what_each_has(self, done):
        """Only the first makes it, and speaks below errors."""
        assert [outcome["from first"] for outcome in done] == ["by 0"] * 3
        assert [outcome["gather"] for outcome in done] == [[0, 1, 2]] * 3
        assert done[0]["level"] <= logging.WARNING
        assert [outcome["level"] for outcome in done[1:]] == [logging.ERROR] * 2


def states_equal(left, right):
    return all(torch.equal(left[name], right[name]) for name in right)


# ---- when one of two ends


def go_wrong(world, how):
    world.gather("here")
    if not world.first:
        if how == "raises":
            raise RuntimeError("out of memory")
        if how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return world.gather("still here")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raises", "is killed"])
def test_a_rank_that_ends_ends_the_others(tmp_path, how):
    """At once, and they say that they are not the cause; the error of the one that is stays its own."""
    first, second = in_ranks(2, go_wrong, tmp_path, how)
    assert isinstance(first, LabelnextError)
    assert re.match("rank 0 of 2 cannot go on without another one that has ended.*peer", str(first))
    assert (type(second), str(second)) == ((RuntimeError, "out of memory") if how == "raises" else (type(None), "None"))


@pytest.mark.slow
def test_a_rank_that_hangs_is_not_waited_for_forever(tmp_path):
    """Who waits in vain ends, and says for how long it did."""
    first, _ = in_ranks(2, go_wrong, tmp_path, "hangs", patience_s=10)
    assert isinstance(first, LabelnextError)
    assert "has not answered for 0:00:10" in str(first)
    assert "Timed out" in str(first)


@pytest.mark.parametrize("command", [["versions"], ["watch", "--project", "1", "--labels", "1"]])
def test_other_commands_than_run_are_refused_in_several_processes(command, monkeypatch, capsys):
    """They would do their work as many times."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command) == 1
    assert "without torchrun" in capsys.readouterr().err
