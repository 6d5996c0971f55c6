"""What annotators see in Label Studio after a ranking, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from contract.labelconfig import parse_label_config
from contract.scores.sure import mark
from contract.tasks import find_reference
from demo.browser import PATIENCE_MS
from demo.label_studio import LabelStudio
from demo.project import Project
from server.http.labelstudio import build_predictions, resolve_target
from server.inference.batching import ImageScores
from server.settings import Score
from tests.contract.images import test_urls
from tests.system.conftest import save_screenshot
from tests.versions import manifest
from trainer import labelstudio
from trainer.labels.annotations import EMPTY, LeftOut, aggregate, confirmed_groups, is_confirmed
from trainer.labelstudio.client import ProjectClient
from trainer.labelstudio.tasks import PoolTask, annotated_tasks, unlabelled_tasks
from trainer.ranking.reconcile import DesiredPrediction, reconcile

VERSION = "20261129T050102123Z-0a1b2c"


def test_url_tables_of_the_unit_tests_match_the_browser(browser: Browser):
    """Both for URLs and for data: URIs of images."""
    page = browser.new_page()
    href = "address => { try { return new URL(address).href } catch { return null } }"
    assert {url: page.evaluate(href, url) for url in test_urls.URLS} == test_urls.URLS
    assert [page.evaluate(href, url) for url in test_urls.INVALID_URLS] == [None] * len(test_urls.INVALID_URLS)
    shown = "uri => { const image = new Image(); image.src = uri; return image.decode().then(() => true, () => false) }"
    assert {uri: page.evaluate(shown, uri) for uri in test_urls.DATA_URIS} == test_urls.DATA_URIS
    page.close()


IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAGUlEQVR4nGM8ISfHQApgIkn1qIZRDUNKAwBPHwEkcYw1mA"
    "AAAABJRU5ErkJggg=="
)
NESTED = '<Choice value="Colour" alias="c"><Choice value="red"/><Choice value="Blue" alias="b"/></Choice>'
PARTLY_NESTED = '<Choice value="plain"/><Choice value="shape"><Choice value="round"/></Choice>'
FLAT = '<Choice value="red"/><Choice value="Blue" alias="b"/>'

CONFIGS = {
    "flat": ("$image", {"image": IMAGE}, "", FLAT, ["b"]),
    "select": ("$image", {"image": IMAGE}, 'layout="select"', FLAT, ["b"]),
    "with a nested choice": (
        "$image",
        {"image": IMAGE},
        "",
        '<Choice value="red"/><Choice value="x"><Choice value="y"/></Choice>',
        ["x"],
    ),
    "nested": ("$image", {"image": IMAGE}, 'allowNested="true"', NESTED, [["c", "b"]]),
    "nested after others": ("$image", {"image": IMAGE}, 'allowNested="true"', PARTLY_NESTED + NESTED, [["c", "b"]]),
    "partly nested": (
        *("$image", {"image": IMAGE}, 'allowNested="true"', NESTED + PARTLY_NESTED),
        [["shape"], ["shape", "round"]],
    ),
    "path": ("$image.url", {"image": {"url": IMAGE}}, "", FLAT, ["b"]),
    "index": ("$images[0]", {"images": [IMAGE]}, "", FLAT, ["b"]),
    "imported before the config": ("$image", {"$undefined$": IMAGE}, "", FLAT, ["b"]),
}
"""Value of the image, task data, attributes and content of the choices, and the choices that must be selected."""


@pytest.mark.parametrize(("value", "data", "attribute", "inner", "selected"), CONFIGS.values(), ids=list(CONFIGS))
def test_predictions_are_prelabelled_and_become_labels_when_submitted(
    page: Page,
    studio: LabelStudio,
    tmp_path: Path,
    value: str,
    data: object,
    attribute: str,
    inner: str,
    selected: object,
):
    """With all kinds of choices and image references."""
    choices = f'<Choices name="choice" toName="image" {attribute}>{inner}</Choices>'
    config = f'<View><Image name="image" value="{value}"/>{choices}</View>'
    project, client, [task] = _create_project(studio, config, data)
    (control,) = parse_label_config(config)
    assert find_reference(task.data, control.value_key) == IMAGE
    _rank(client, {task.id: DesiredPrediction(0.5, _predict_last(config, control.labels))}, tmp_path)

    _open_prelabelled(page, f"{project.url}?task={task.id}")
    selection = page.evaluate(f"JSON.stringify({EDITOR}.selectedValues())")
    assert json.loads(selection) == selected
    _submit(page)
    [labelled] = annotated_tasks(client)
    assert aggregate(labelled, "choice", set(control.labels)) == {control.labels[-1]}


def _create_project(
    studio: LabelStudio, config: str, *data: object
) -> tuple[Project, ProjectClient, Sequence[PoolTask]]:
    session = studio.client()
    project = Project(session, session.post("/api/projects", {"title": "Browser test", "label_config": config})["id"])
    session.post(f"/api/projects/{project.id}/import", [{"data": each} for each in data])
    client = labelstudio.connect(studio.url, studio.token, project.id)
    return project, client, list(unlabelled_tasks(client))


def _rank(client: ProjectClient, desired: Mapping[int, DesiredPrediction], folder: Path) -> None:
    reconcile(client, name=VERSION, desired=desired, journal=folder / "journal", find_open_tasks=lambda: {*desired})
    labelstudio.switch_model_version(client, VERSION)


def _rank_three(studio: LabelStudio, folder: Path, attribute: str = "") -> tuple[Project, ProjectClient, Sequence[int]]:
    """Create a project and rank its three tasks, returned in order; the first is in the random holdout."""
    choices = f'<Choices name="choice" toName="image" {attribute}>{FLAT}</Choices>'
    config = f'<View><Image name="image" value="$image"/>{choices}</View>'
    project, client, tasks = _create_project(studio, config, *[{"image": IMAGE}] * 3)
    third, first, second = (task.id for task in tasks)
    regions = _predict_last(config, ("red", "b"))
    _rank(
        client,
        {
            third: DesiredPrediction(0.3, regions),
            first: DesiredPrediction(0.1, ()),
            second: DesiredPrediction(0.2, regions),
        },
        folder,
    )
    assert _by_score(project) == [first, second, third]
    return project, client, (first, second, third)


def _by_score(project: Project) -> Sequence[int]:
    return [task.id for task in project.tasks(ordering="tasks:predictions_score")]


def _open_stream(page: Page, project: Project) -> int:
    """Press Label All Tasks, and return the id of the task that appears."""
    page.goto(project.url)
    page.get_by_text("Label All Tasks").click()
    page.get_by_role("button", name="Submit").first.wait_for()
    return int(page.locator("[class*=current-task__task-id]").inner_text().split()[0])


@pytest.mark.parametrize("attribute", ["", 'choice="multiple"', 'required="true"'])
def test_holdout_tasks_are_ranked_but_not_prelabelled(page: Page, studio: LabelStudio, tmp_path: Path, attribute: str):
    """Submitting without a choice gives no label."""
    project, client, order = _rank_three(studio, tmp_path, attribute)
    assert _open_stream(page, project) == order[0]
    assert _selected_choices(page) == []
    page.get_by_role("button", name="Submit").first.click()
    if "required" in attribute:
        page.get_by_text("is required").first.wait_for()
        assert not list(annotated_tasks(client))
    else:
        page.wait_for_function(f"{EDITOR}?.selectedValues().length > 0")  # the next task, which is prelabelled
        [labelled] = annotated_tasks(client)
        with pytest.raises(LeftOut, match=EMPTY):
            aggregate(labelled, "choice", {"red", "b"}, multiple="multiple" in attribute)


def test_rankings_do_not_switch_prelabelling_on_again(page: Page, studio: LabelStudio, tmp_path: Path):
    """The label stream keeps its order, without prelabelled tasks."""
    project, client, order = _rank_three(studio, tmp_path)
    page.goto(f"{studio.url}/projects/{project.id}/settings/annotation")
    toggle = page.locator("input[name=show_collab_predictions]")
    expect(toggle).to_be_checked(timeout=PATIENCE_MS)
    page.get_by_text("Use predictions to prelabel tasks").first.click()
    expect(toggle).not_to_be_checked()
    save_screenshot(page, "prelabelling")
    page.get_by_role("button", name="Save annotation settings").click()
    page.get_by_text("Saved!").wait_for()
    assert labelstudio.read_project(client).model_version == ""
    labelstudio.switch_model_version(client, VERSION)
    assert project.settings()["show_collab_predictions"] is False
    assert _by_score(project) == list(order)
    red = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["red"]}}
    studio.client().post(f"/api/tasks/{order[0]}/annotations/", {"result": [red]})
    assert _open_stream(page, project) == order[1]
    assert _selected_choices(page) == []
    page.goto(f"{project.url}?task={order[2]}")
    page.get_by_role("button", name="Submit").first.wait_for()
    assert _selected_choices(page) == ["b"]  # tasks opened from the list are always prelabelled


def test_bulk_confirmations_are_known_after_predictions_are_deleted(page: Page, studio: LabelStudio, tmp_path: Path):
    """By their copy of the mark. Unlike submitted annotations, they have no lead time."""
    config = f'<View><Image name="image" value="$image"/><Choices name="choice" toName="image">{FLAT}</Choices></View>'
    project, client, imported = _create_project(studio, config, *[{"image": IMAGE}] * 4)
    offered, other, submitted, held_out = (task.id for task in imported)
    regions = _predict_last(config, ("red", "b"))
    marked = [{**region, "meta": {**region["meta"], "tab": mark(VERSION, 1)}} for region in regions]
    desired = {task: DesiredPrediction(0.5, marked) for task in (offered, submitted)}
    desired |= {other: DesiredPrediction(0.5, regions), held_out: DesiredPrediction(0.5, ())}
    _rank(client, desired, tmp_path)

    path = f"/api/dm/actions?id=predictions_to_annotations&project={project.id}"
    selected = {"all": False, "included": [offered, other, held_out]}
    studio.client().post(path, {"selectedItems": selected, "model_version": VERSION})
    _open_prelabelled(page, f"{project.url}?task={submitted}")
    _submit(page)

    tasks = {task["id"]: task for task in annotated_tasks(client)}
    annotations = {task: each["annotations"][0] for task, each in tasks.items()}
    assert all(annotations[task]["parent_prediction"] for task in (offered, other, held_out))
    without_lead_time = {task for task, each in annotations.items() if each["lead_time"] is None}
    assert without_lead_time == {offered, other, held_out}

    labelstudio.switch_model_version(client, "")
    labelstudio.delete_predictions(client, VERSION)
    tasks = {task["id"]: task for task in annotated_tasks(client)}
    assert not any(each["annotations"][0]["parent_prediction"] for each in tasks.values())
    assert {task for task, each in tasks.items() if is_confirmed(each)} == {offered, other}
    assert confirmed_groups(tasks[offered]) == {(VERSION, 1)}
    labels = {aggregate(tasks[task], "choice", {"red", "b"}) for task in (offered, other, submitted)}
    assert labels == {frozenset({"b"})}
    with pytest.raises(LeftOut, match=EMPTY):
        aggregate(tasks[held_out], "choice", {"red", "b"})


EDITOR = "window.Htx?.annotationStore?.selected?.names?.get('choice')"


def _open_prelabelled(page: Page, url: str) -> None:
    """Open a task, and wait for the annotation that the editor creates from the prediction.

    The editor shows the prediction first and may reload the task, after which it sometimes creates no annotation; then
    the page is opened again.
    """
    selected = "window.Htx?.annotationStore?.selected"
    prelabelled = f"{selected}?.type === 'annotation' && {selected}.serializeAnnotation().length > 0"
    for _ in range(4):
        page.goto(url)
        with suppress(PlaywrightTimeoutError):
            page.wait_for_function(prelabelled, timeout=15_000)
            page.wait_for_timeout(1500)
            if page.evaluate(prelabelled):
                return
    pytest.fail("the editor created no annotation from the prediction")


def _submit(page: Page) -> None:
    with page.expect_response(lambda reply: reply.request.method == "POST" and "/annotations" in reply.url):
        page.get_by_role("button", name="Submit").first.click()


def _selected_choices(page: Page) -> object:
    """Return the selected choices of the open annotation, a second after it was opened."""
    page.wait_for_function("window.Htx?.annotationStore?.selected?.type === 'annotation'")
    page.wait_for_timeout(1000)
    return json.loads(page.evaluate(f"JSON.stringify({EDITOR}.selectedValues())"))


def _predict_last(config: str, labels: tuple[str, ...]) -> Sequence[Mapping[str, Any]]:
    """Return the regions of a version that predicts the last of its labels."""
    version = replace(manifest(VERSION), labels=labels, control="choice")
    scores = ImageScores(np.eye(len(labels), dtype=np.float32)[-1], bald=0.1, entropy=0.1)
    target = resolve_target(config, VERSION, "choice", labels)
    [prediction] = build_predictions([scores], version, target, Score.AGREEMENT)
    regions: Sequence[Mapping[str, Any]] = prediction["result"]
    return regions
