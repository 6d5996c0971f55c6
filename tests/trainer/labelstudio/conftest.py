import pytest

from tests.trainer.studio import TOKEN, studio
from trainer import labelstudio


@pytest.fixture
def pets():
    """A project of twelve tasks, and a client."""
    with studio(12) as pets:
        pets.client = labelstudio.connect(pets.url, TOKEN, 5)
        yield pets
