import pytest

from contract.versions.documents import Documents
from contract.versions.repository import Repository
from contract.versions.training_requests import MAX_REQUESTS, find_requests, remove_request, submit_request


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "models", "birds")


@pytest.fixture
def folder(repository):
    return repository.root / "requests"


def files_in(folder):
    return len(list(folder.iterdir()))


def projects_of(repository):
    return [request.project for request in find_requests(repository)]


def test_request_is_found_until_it_is_removed(repository, folder):
    """With its project, or None. Repeated requests replace earlier ones."""
    assert find_requests(repository) == []
    assert not repository.root.exists()
    for project in (7, None, 7, 7):
        submit_request(repository, project)
    assert files_in(folder) == 2
    assert projects_of(repository) == [None, 7]
    for request in find_requests(repository):
        assert request.at.endswith("+00:00")
        remove_request(repository, request)
    assert find_requests(repository) == []


def test_requests_are_for_one_model(tmp_path):
    models = [Repository(tmp_path, model) for model in ("birds", "birds.7", "birds.7.json", "b")]
    for model in models:
        submit_request(model, 7)
    assert [projects_of(model) for model in (*models, Repository(tmp_path, "bird"))] == [[7]] * 4 + [[]]


def test_request_for_any_model_is_found_by_all(tmp_path):
    """Repeated ones count once."""
    birds, cars = Repository(tmp_path, "birds"), Repository(tmp_path, "cars")
    for project in (7, None, 7):
        submit_request(birds, project, any_model=True)
    submit_request(birds, 8)
    assert (projects_of(cars), projects_of(birds)) == ([None, 7], [None, 7, 8])
    for request in find_requests(cars):
        remove_request(cars, request)
    assert projects_of(birds) == [8]


@pytest.mark.parametrize("while_removed", [False, True])
def test_repeated_request_is_not_removed(repository, monkeypatch, while_removed):
    """Even if it is submitted while the old one is being removed."""
    remove_file = Documents.remove

    def submit_and_remove(documents, name):
        monkeypatch.setattr(Documents, "remove", remove_file)
        submit_request(repository, 7)
        remove_file(documents, name)

    submit_request(repository, 7)
    [old] = find_requests(repository)
    if while_removed:
        monkeypatch.setattr(Documents, "remove", submit_and_remove)
    else:
        submit_request(repository, 7)
    remove_request(repository, old)
    [new] = find_requests(repository)
    assert new.at > old.at


def test_simultaneous_requests_for_a_project_are_one(repository, folder):
    """Two servers may write at the same moment; both files are removed."""
    submit_request(repository, 7)
    [first] = find_requests(repository)
    content = (folder / first.files[0]).read_bytes()
    submit_request(repository, 7)
    (folder / first.files[0]).write_bytes(content)
    [request] = find_requests(repository)
    assert len(request.files) == 2
    assert request.at > first.at
    remove_request(repository, request)
    assert files_in(folder) == 0


def test_number_of_requests_is_limited(repository, folder):
    """Anyone may request projects that do not exist. Repeated requests are still accepted."""
    for project in range(MAX_REQUESTS):
        submit_request(repository, project)
    with pytest.raises(OSError, match="100 requests are waiting already"):
        submit_request(repository, MAX_REQUESTS)
    submit_request(repository, 0)
    assert files_in(folder) == MAX_REQUESTS


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"project": "7", "at": "x"}', '{"project": true, "at": "x"}', "\0"]
)
def test_invalid_files_are_skipped(repository, folder, content, caplog):
    submit_request(repository, 7)
    (folder / "birds.8.json").write_text(content)
    assert projects_of(repository) == [7]
    assert "birds.8.json is not a valid training request" in caplog.text
