import os

import pytest

from contract.repository import Repository
from contract.training_requests import find_requests, leave_request, remove


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "models", "birds")


def test_nothing_is_asked_of_a_new_repository(repository):
    """Looking makes no folder."""
    assert find_requests(repository) == []
    assert not repository.root.exists()


def test_a_request_is_found_until_it_is_removed(repository):
    """Its project comes along; a project that was not named is None."""
    leave_request(repository, 7)
    leave_request(repository, None)
    assert {request.project for request in find_requests(repository)} == {7, None}
    for request in find_requests(repository):
        assert request.at.endswith("+00:00")
        remove(repository, request)
    assert find_requests(repository) == []


def test_asking_twice_is_asking_once(repository):
    """Presses of a button do not pile up, and leave nothing else in the folder."""
    for _ in range(3):
        leave_request(repository, 7)
    assert len(find_requests(repository)) == 1
    assert len(os.listdir(repository.root / "requests")) == 1


def test_requests_are_of_one_model(tmp_path):
    """A model does not see another's, be its name the beginning of the other's or hold dots."""
    for model in ("birds", "birds.7", "birds.7.json", "b"):
        leave_request(Repository(tmp_path, model), 7)
    for model in ("birds", "birds.7", "birds.7.json", "b"):
        assert len(find_requests(Repository(tmp_path, model))) == 1
    assert find_requests(Repository(tmp_path, "bird")) == []


def test_a_request_that_was_made_again_is_not_removed(repository):
    """Who answers an old request does not swallow the new one."""
    leave_request(repository, 7)
    [old] = find_requests(repository)
    (repository.root / "requests" / old.file).write_text('{"project": 7, "at": "2099-01-01T00:00:00+00:00"}')
    remove(repository, old)
    assert len(find_requests(repository)) == 1


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"project": "7", "at": "x"}', '{"project": true, "at": "x"}', "\0"]
)
def test_a_file_that_is_no_request_is_passed_over(repository, content, caplog):
    """It is named in the log, and hides no other."""
    leave_request(repository, 7)
    (repository.root / "requests" / "birds.8.json").write_text(content)
    assert [request.project for request in find_requests(repository)] == [7]
    assert "birds.8.json is no request to train" in caplog.text
