"""`release` restores a project to its state before the first ranking."""

import copy
import json

import pytest
from filelock import FileLock

from contract.errors import ConfigError
from contract.scores.ranking import load_rankings
from contract.versions.training_requests import find_requests, submit_request
from tests.disks import fill, small_disk
from trainer import labelstudio
from trainer.__main__ import main
from trainer.labelstudio.webhooks import set_webhook_token
from trainer.ranking.context import cache_folder
from trainer.ranking.releasing import load_original, release


@pytest.fixture
def used(project):
    """A project sorted by another model, with webhooks; `before` is its state before any ranking."""
    project.studio.predict(1, "yolo")
    project.studio.project.update(model_version="yolo", sampling="Uniform sampling")
    headers = {"Authorization": "Bearer theirs"}
    project.studio.webhooks = {
        1: {"id": 1, "url": f"{project.server.url}/webhook", "headers": {}},
        2: {"id": 2, "url": "http://elsewhere/webhook", "headers": headers},
    }
    project.before = state_of(project)
    return project


def state_of(project):
    """Return everything that a ranking or a watch may change."""
    studio = project.studio
    settings = ("model_version", "sampling", "label_config", "title")
    return copy.deepcopy(
        ({name: studio.project[name] for name in settings}, studio.predictions, studio.webhooks, studio.tasks)
    )


def rank_and_watch(project):
    """Rank, and add everything that rankings, a watch and Label Studio's own requests may leave behind."""
    project.rank()
    for name in ("cold-start-default", project.version, f"{project.version}.r2"):
        project.studio.predict(3, name)
    client = labelstudio.connect(project.studio.url, project.environment.label_studio_token, 5)
    set_webhook_token(client, [project.server.url], "secret")
    submit_request(project.repository, 5)
    submit_request(project.repository, 6)
    assert state_of(project) != project.before


def test_release_restores_the_original_state(used, monkeypatch, capsys):
    rank_and_watch(used)
    ours = sum(each["model_version"] != "yolo" for each in used.studio.predictions.values())
    monkeypatch.setenv("LABELNEXT_MODELS", str(used.repository.root))
    monkeypatch.setenv("LABELNEXT_CACHE", str(used.environment.cache))
    monkeypatch.setenv("LABELNEXT_LABEL_STUDIO_URL", used.studio.url)
    monkeypatch.setenv("LABELNEXT_LABEL_STUDIO_TOKEN", used.environment.label_studio_token)
    assert main(["release", "--project", "5", "--server", used.server.url]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert (document["predictions"], document["webhooks"], document["recorded"]) == (ours, 1, True)
    assert "1 webhooks cleared; sampling: Uniform sampling; model version: yolo" in printed.err
    assert state_of(used) == used.before
    assert load_rankings(used.repository) == []
    assert load_original(used.repository, 5) is None
    assert not cache_folder(used.environment, 5).exists()
    assert [request.project for request in find_requests(used.repository)] == [6]


def test_releasing_an_unranked_project_changes_nothing(used):
    """Uncertainty sampling may be its owner's choice."""
    used.studio.project.update(model_version="", sampling="Uncertainty sampling")
    before = state_of(used)
    released = release(5, used.environment)
    assert (released.predictions, released.webhooks) == (0, 0)
    assert state_of(used) == before


def test_settings_changed_by_others_are_kept(used):
    rank_and_watch(used)
    used.studio.project["sampling"] = "Sequential sampling"
    assert release(5, used.environment).sampling == "Sequential sampling"
    rank_and_watch(used)
    used.studio.predict(2, "newer yolo")
    used.studio.project["model_version"] = "newer yolo"
    assert release(5, used.environment).model_version == "newer yolo"


def test_predictions_of_pruned_versions_are_removed(used):
    used.rank()
    first = used.version
    used.publish()
    used.rank()
    used.studio.predict(3, first)
    used.repository.retire(first)
    release(5, used.environment)
    assert state_of(used) == used.before


def test_label_studios_defaults_are_set_without_a_record(used):
    """A ranking does not record our own settings as the original ones."""
    rank_and_watch(used)
    (used.repository.folder / "projects" / "5.json").unlink()
    used.publish()
    used.rank()
    assert load_original(used.repository, 5) is None
    released = release(5, used.environment)
    assert (released.sampling, released.model_version, released.recorded) == ("Sequential sampling", "", False)
    assert "the original settings are unknown" in released.describe()
    assert {each["model_version"] for each in used.studio.predictions.values()} == {"yolo"}


def test_release_can_be_repeated_after_a_kill_at_any_request(used, monkeypatch):
    rank_and_watch(used)
    studio, ranked = used.studio, state_of(used)
    [record] = used.repository.folder.rglob("projects/5.json")
    content, step, killed = record.read_bytes(), 0, True
    while killed:
        step += 1
        studio.project.update(copy.deepcopy(ranked[0]))
        studio.predictions, studio.webhooks = copy.deepcopy(ranked[1:3])
        record.write_bytes(content)
        killed = used.run_until(step, monkeypatch, lambda: release(5, used.environment))
        if killed:
            assert record.exists()
            release(5, used.environment)
        assert state_of(used) == used.before
        assert not record.exists()
    assert step > 10


@pytest.mark.parametrize("work", ["watch", "rank.5"])
def test_rejects_release_during_a_watch_or_a_ranking(used, work):
    rank_and_watch(used)
    before = state_of(used)
    with (
        FileLock(used.repository.root / f".default.{work}.lock"),
        pytest.raises(ConfigError, match=r"stop it first|wait for it to end"),
    ):
        release(5, used.environment)
    assert state_of(used) == before


def test_nothing_is_changed_if_the_original_settings_cannot_be_saved(used):
    with small_disk(used.repository.folder / "projects", "1m", "nr_inodes=3"):
        fill(used.repository.folder / "projects")
        with pytest.raises(ConfigError, match=r"original settings of project 5 to .*No space left on device"):
            used.rank()
        assert used.studio.project["model_version"] == "yolo"
    used.rank()
    release(5, used.environment)
    assert state_of(used) == used.before
