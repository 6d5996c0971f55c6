import dataclasses
import json
import os

import pytest

from contract.scores.ranking import RankedImage, Ranking, load_rankings, ranked_projects, save_ranking
from contract.scores.sure import Shadow, Sure
from contract.versions.repository import RANKINGS_FOLDER, Repository
from tests.versions import VERSION

IMAGE = RankedImage(
    task=12,
    label="Grünspecht 🐦",
    probability=0.4,
    bald=0.31,
    score=0.02,
    reason="the passes disagree",
    thumbnail=b"\xff\xd8 a JPEG",
)
SHADOW = Shadow(4, "name", 1, ("cat",), confirmed=True)
RANKING = Ranking(
    name=VERSION,
    version=VERSION,
    project=3,
    title='"Birds" <of> Europe',
    created_at="2026-01-02T03:10:00+00:00",
    strategy="balanced-bald-margin",
    tasks=100,
    audit=10,
    near_duplicates=7,
    failed=1,
    mean_bald=0.11,
    most_uncertain=(IMAGE,),
    most_confident=(dataclasses.replace(IMAGE, label=None, probability=None, bald=None),),
    first=(IMAGE, IMAGE),
    unscored=(7, 12),
    sure=Sure("name", 0.98, {"cat": 2}, 0.5, 200, 1, 0.97, shadows=(SHADOW,), passed_over=(3,), tasks={7: 0, 8: 0}),
)


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "models", "birds")


def test_round_trip(repository):
    assert load_rankings(repository) == []
    save_ranking(repository, RANKING)
    assert load_rankings(repository) == [RANKING]


def test_ranked_projects_are_listed_without_reading_records(repository):
    assert ranked_projects(repository) == {}
    records = repository.documents(RANKINGS_FOLDER)
    for name in ("3.json", "12.json", "notes.txt", "x.json"):
        records.write(name, b"no record")
    os.utime(repository.folder / RANKINGS_FOLDER / "12.json", (0, 1_700_000_000))
    times = ranked_projects(repository)
    assert set(times) == {3, 12}
    assert times[12] == 1_700_000_000 < times[3]


def test_each_project_has_its_last_ranking(repository):
    """Newest first. A later ranking replaces the earlier one of its project, and leaves no other files."""
    save_ranking(repository, dataclasses.replace(RANKING, project=4, created_at="2026-01-01T00:00:00+00:00"))
    save_ranking(repository, RANKING)
    later = dataclasses.replace(RANKING, name="later", created_at="2026-01-03T00:00:00+00:00", version=None)
    save_ranking(repository, later)
    rankings = [(ranking.project, ranking.name) for ranking in load_rankings(repository)]
    assert rankings == [(3, "later"), (4, RANKING.name)]
    assert sorted(os.listdir(repository.folder / "rankings")) == ["3.json", "4.json"]
    assert repository.versions() == []


def test_failed_write_keeps_the_last_ranking(repository):
    """NaN has no form in JSON."""
    save_ranking(repository, RANKING)
    with pytest.raises(ValueError, match="Out of range float"):
        save_ranking(repository, dataclasses.replace(RANKING, mean_bald=float("nan")))
    assert load_rankings(repository) == [RANKING]
    assert os.listdir(repository.folder / "rankings") == ["3.json"]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"{", b"\xff\xfe", b"null", b"[" * 99999),
        *({"tasks": -1}, {"tasks": "7"}, {"mean_bald": float("nan")}, {"unscored": [-1]}, {"first": None}),
        {"first": [{"thumbnail": None}]},
    ],
)
def test_invalid_records_are_skipped(repository, content, caplog):
    """With a warning. Counts must be non-negative integers, and numbers finite."""
    save_ranking(repository, RANKING)
    folder = repository.folder / "rankings"
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / "3.json").read_text()) | content).encode()
    (folder / "4.json").write_bytes(content)
    assert load_rankings(repository) == [RANKING]
    assert "4.json is not a valid ranking" in caplog.text
