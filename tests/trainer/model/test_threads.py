import pytest
import torch
from torch import nn

from trainer.model.threads import few_threads


@pytest.mark.parametrize(("units", "threads"), [(10, 1), (2000, 3)], ids=["small", "large"])
def test_what_is_small_is_computed_in_one_thread(units, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with few_threads(nn.Linear(1000, units)):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
