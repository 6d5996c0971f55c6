"""Letting a project go: it is as it was before its first ranking."""

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
def used(rig):
    """Somebody else's predictions are shown, and webhooks are there, before we come."""
    rig.studio.predict(1, "yolo")
    rig.studio.project.update(model_version="yolo", sampling="Uniform sampling")
    theirs = {"Authorization": "Bearer theirs"}
    rig.studio.webhooks = {
        1: {"id": 1, "url": f"{rig.server.url}/webhook", "headers": {}},
        2: {"id": 2, "url": "http://elsewhere/webhook", "headers": theirs},
    }
    rig.before = seen(rig)
    return rig


def seen(rig):
    """All that a ranking and a watch may change."""
    studio = rig.studio
    kept = ("model_version", "sampling", "label_config", "title")
    return copy.deepcopy(
        ({name: studio.project[name] for name in kept}, studio.predictions, studio.webhooks, studio.tasks)
    )


def use(rig):
    """Rank, and leave behind all that rankings, a watch and Label Studio's own requests may."""
    rig.rank()
    for name in ("cold-start-default", rig.version, f"{rig.version}.r2"):
        rig.studio.predict(3, name)
    client = labelstudio.connect(rig.studio.url, rig.environment.label_studio_token, 5)
    set_webhook_token(client, [rig.server.url], "secret")
    submit_request(rig.repository, 5)
    submit_request(rig.repository, 6)
    assert seen(rig) != rig.before


def test_a_project_is_as_it_was_before_its_first_ranking(used, monkeypatch, capsys):
    """Released again, or never ranked, it is left as it is: sampling by uncertainty may be its owner's choice."""
    use(used)
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
    assert seen(used) == used.before
    assert load_rankings(used.repository) == []
    assert load_original(used.repository, 5) is None
    assert not cache_folder(used.environment, 5).exists()
    assert [request.project for request in find_requests(used.repository)] == [6]
    used.studio.project.update(model_version="", sampling="Uncertainty sampling")
    after = seen(used)
    again = release(5, used.environment)
    assert (again.predictions, again.webhooks) == (0, 0)
    assert seen(used) == after


def test_what_was_changed_since_by_somebody_else_is_not_put_back(used):
    use(used)
    used.studio.project["sampling"] = "Sequential sampling"
    assert release(5, used.environment).sampling == "Sequential sampling"
    use(used)
    used.studio.predict(2, "newer yolo")
    used.studio.project["model_version"] = "newer yolo"
    assert release(5, used.environment).model_version == "newer yolo"


def test_predictions_of_versions_that_were_pruned_go_too(used):
    used.rank()
    first = used.version
    used.publish()
    used.rank()
    used.studio.predict(3, first)
    used.repository.retire(first)
    release(5, used.environment)
    assert seen(used) == used.before


def test_without_a_record_the_project_gets_label_studios_defaults(used):
    """As after an earlier release, which kept none: a later ranking does not take our own settings for its owner's."""
    use(used)
    (used.repository.folder / "projects" / "5.json").unlink()
    used.publish()
    used.rank()
    assert load_original(used.repository, 5) is None
    released = release(5, used.environment)
    assert (released.sampling, released.model_version, released.recorded) == ("Sequential sampling", "", False)
    assert "was not written down" in released.describe()
    assert {each["model_version"] for each in used.studio.predictions.values()} == {"yolo"}


def test_one_that_is_cut_short_at_any_request_goes_on_where_it_was(used, monkeypatch):
    use(used)
    studio, after = used.studio, seen(used)
    [record] = used.repository.folder.rglob("projects/5.json")
    content, step, cut = record.read_bytes(), 0, True
    while cut:
        step += 1
        studio.project.update(copy.deepcopy(after[0]))
        studio.predictions, studio.webhooks = copy.deepcopy(after[1:3])
        record.write_bytes(content)
        cut = used.run_until(step, monkeypatch, lambda: release(5, used.environment))
        if cut:
            assert record.exists()
            release(5, used.environment)
        assert seen(used) == used.before
        assert not record.exists()
    assert step > 10


@pytest.mark.parametrize("work", ["watch", "rank.5"])
def test_nobody_is_released_while_a_watch_or_a_ranking_is_at_work(used, work):
    use(used)
    before = seen(used)
    with (
        FileLock(used.repository.root / f".default.{work}.lock"),
        pytest.raises(ConfigError, match=r"end it first|wait for it to end"),
    ):
        release(5, used.environment)
    assert seen(used) == before


def test_nothing_is_changed_if_it_cannot_be_written_down_how_it_was(used):
    with small_disk(used.repository.folder / "projects", "1m", "nr_inodes=3"):
        fill(used.repository.folder / "projects")
        with pytest.raises(ConfigError, match=r"how project 5 was to .*No space left on device \(.* MiB are free"):
            used.rank()
        assert used.studio.project["model_version"] == "yolo"
    used.rank()
    release(5, used.environment)
    assert seen(used) == used.before
