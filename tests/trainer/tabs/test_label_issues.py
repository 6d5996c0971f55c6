import pytest

from contract.labelconfig import parse_label_config
from contract.versions.repository import Repository
from contract.versions.results import ProjectState, TrainingRecord
from tests.trainer.studio import TOKEN, studio
from tests.trainer.studio_project import CONFIG
from tests.versions import publish
from trainer import labelstudio
from trainer.tabs.label_issues import (
    LabelIssue,
    ReviewTask,
    find_review_tasks,
    read_label_issues,
    time_after_changes,
    update_listed,
)
from trainer.tabs.record import ListedTask

NESTED = (
    '<View><Image name="image" value="$image"/><Choices name="label" toName="image" choice="multiple" '
    'allowNested="true"><Choice value="cat"/><Choice value="pet"><Choice value="dog"/></Choice></Choices></View>'
)


@pytest.fixture
def pets():
    with studio(6) as pets:
        pets.annotate(2, "cat")
        pets.annotate(3, "cat")
        yield pets


def find(pets, *issues, listed=None, config=CONFIG):
    client = labelstudio.connect(pets.url, TOKEN, 5)
    [control] = parse_label_config(config)
    return find_review_tasks(client, issues, control=control, marker="v/again.", listed=listed or {})


def issue(task, given=("cat",), suggested=("dog",), probability=0.04):
    return LabelIssue(task, given, suggested, probability, 0.93)


def test_review_tasks_have_the_suggested_label(pets):
    first, second = find(pets, issue(3), issue(2, probability=0.2))
    assert (first.task, first.score, first.given) == (3, pytest.approx(0.96), ("cat",))
    assert (second.task, second.score) == (2, pytest.approx(0.8))
    assert first.result[0]["meta"]["tab"] == "v/again."
    pets.project["label_config"] = NESTED
    pets.tasks[2]["annotations"][0]["result"][0]["value"]["choices"] = [["cat"]]
    [nested] = find(pets, issue(2, suggested=("cat", "pet > dog")), config=NESTED)
    assert nested.result[0]["value"] == {"choices": [["cat"], ["pet", "dog"]]}
    assert nested.result[0]["meta"]["reason"] == "labelled cat (4 % likely), looks like cat and pet > dog"


@pytest.mark.parametrize(
    "other",
    [
        issue(1),
        issue(99),
        issue(2, given=("dog",), suggested=("cat",)),
        issue(2, suggested=("horse",)),
    ],
    ids=["not labelled", "deleted", "other label", "unknown label"],
)
def test_outdated_issues_are_ignored(pets, other):
    assert [each.task for each in find(pets, other, issue(3))] == [3]


def test_requests_for_many_tasks_have_short_urls(pets):
    others = [issue(number) for number in range(100, 499)]
    pets.requests.clear()
    assert [each.task for each in find(pets, *others, issue(3))] == [3]
    requests = [request for request in pets.requests if request.path.startswith("/api/tasks")]
    assert len(requests) == 2
    assert max(len(request.path) for request in requests) < 4000


def test_listed_tasks_keep_the_time_of_their_first_listing():
    listed = {
        1: ListedTask("a", ("cat",)),
        2: ListedTask("b", ("cat",)),
        3: ListedTask("c", ("cat",)),
        4: ListedTask("d", ("cat",)),
    }
    review_tasks = [
        ReviewTask(1, 0.9, (), "x", ("cat",)),
        ReviewTask(2, 0.9, (), "y", ("dog",)),
        ReviewTask(5, 0.9, (), "z", ("dog",)),
    ]
    assert update_listed(listed, review_tasks, unlabelled={4}) == {
        1: listed[1],
        2: ListedTask("y", ("dog",)),
        3: listed[3],
        5: ListedTask("z", ("dog",)),
    }


def test_time_after_changes_has_microseconds():
    changes = ["2026-11-29T20:00:00Z", "2026-11-29T21:00:00.999999+01:00"]
    assert (
        time_after_changes([ReviewTask(1, 0.5, (), change, ()) for change in changes]) == "2026-11-29T20:00:01.000000Z"
    )
    assert time_after_changes([ReviewTask(1, 0.5, (), changes[0], ())]) == "2026-11-29T20:00:00.000001Z"
    assert time_after_changes([]) is None


@pytest.mark.parametrize("project", [5, 6])
@pytest.mark.parametrize("figures", [None, "{}", "no JSON", '{"label_errors": {"tasks": [{"task": 1}]}}'])
def test_reports_without_label_issues_are_accepted(tmp_path, project, figures):
    repository = Repository(tmp_path / "models")
    training = TrainingRecord(project=ProjectState(project, 3, ""))
    version = publish(repository, b"one", training=training)
    if figures is not None:
        (version.path / "report" / "figures.json").write_text(figures)
    assert read_label_issues(repository, version.manifest, 5) == []
