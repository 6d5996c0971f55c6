import pytest

from tests.trainer.studio import TOKEN, studio
from trainer import labelstudio


@pytest.fixture
def pets():
    """A project of twelve tasks, and a client."""
    with studio(12) as state:
        state.client = labelstudio.connect(state.url, TOKEN, 5)
        yield state
