"""What an annotator sees: a real browser on a real Label Studio, after a ranking and nothing clicked by hand."""

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
from contract.tasks import find_reference
from demo.browser import PATIENCE_MS
from demo.label_studio import LabelStudio
from demo.project import Project
from server.http.labelstudio import build_predictions, resolve_target
from server.inference.batching import ImageScores
from server.settings import Score
from tests.contract.images import test_spelling
from tests.system.conftest import keep_picture
from tests.versions import manifest
from trainer import labelstudio
from trainer.labels.annotations import EMPTY, LeftOut, decide
from trainer.labelstudio.tasks import annotated_tasks, unlabelled_tasks
from trainer.ranking.reconcile import Wanted, reconcile

VERSION = "20261129T050102123Z-0a1b2c"


def test_addresses_are_read_as_this_browser_reads_them(browser: Browser):
    """The tables that the unit tests go by are what a real browser says, of addresses and of images within tasks."""
    page = browser.new_page()
    href = "address => { try { return new URL(address).href } catch { return null } }"
    assert {address: page.evaluate(href, address) for address in test_spelling.ADDRESSES} == test_spelling.ADDRESSES
    assert [page.evaluate(href, address) for address in test_spelling.NO_ADDRESSES] == [None] * len(
        test_spelling.NO_ADDRESSES
    )
    shown = "uri => { const image = new Image(); image.src = uri; return image.decode().then(() => true, () => false) }"
    assert {uri: page.evaluate(shown, uri) for uri in test_spelling.DATA_URIS} == test_spelling.DATA_URIS
    page.close()


IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAGUlEQVR4nGM8ISfHQApgIkn1qIZRDUNKAwBPHwEkcYw1mA"
    "AAAABJRU5ErkJggg=="
)
NESTED = '<Choice value="Colour" alias="c"><Choice value="red"/><Choice value="Blue" alias="b"/></Choice>'
ALONE = '<Choice value="plain"/><Choice value="shape"><Choice value="round"/></Choice>'
FLAT = '<Choice value="red"/><Choice value="Blue" alias="b"/>'


@pytest.mark.parametrize(
    ("value", "data", "more", "inner", "selected"),
    [
        ("$image", {"image": IMAGE}, "", FLAT, ["b"]),
        ("$image", {"image": IMAGE}, 'layout="select"', FLAT, ["b"]),
        ("$image", {"image": IMAGE}, "", '<Choice value="red"/><Choice value="x"><Choice value="y"/></Choice>', ["x"]),
        ("$image", {"image": IMAGE}, 'allowNested="true"', NESTED, [["c", "b"]]),
        ("$image", {"image": IMAGE}, 'allowNested="true"', ALONE + NESTED, [["c", "b"]]),
        ("$image", {"image": IMAGE}, 'allowNested="true"', NESTED + ALONE, [["shape"], ["shape", "round"]]),
        ("$image.url", {"image": {"url": IMAGE}}, "", FLAT, ["b"]),
        ("$images[0]", {"images": [IMAGE]}, "", FLAT, ["b"]),
        ("$image", {"$undefined$": IMAGE}, "", FLAT, ["b"]),
    ],
    ids=[
        "flat",
        "select",
        "within",
        "nested",
        "nested among others",
        "only one within",
        "path",
        "index",
        "imported before the config",
    ],
)
def test_what_a_model_predicts_is_ticked_and_learnt_from_when_it_is_submitted(
    page: Page, studio: LabelStudio, tmp_path: Path, value: str, data: object, more: str, inner: str, selected: object
):
    """In every form that choices and images may have: the real import takes it, the real editor shows it."""
    choices = f'<Choices name="choice" toName="image" {more}>{inner}</Choices>'
    config = f'<View><Image name="image" value="{value}"/>{choices}</View>'
    session = studio.client()
    number = session.post("/api/projects", {"title": "Forms", "label_config": config})["id"]
    session.post(f"/api/projects/{number}/import", [{"data": data}])
    client = labelstudio.connect(studio.url, studio.token)
    [task] = unlabelled_tasks(client, number)
    (control,) = parse_label_config(config)
    assert find_reference(task.data, control.value_key) == IMAGE
    wanted = {task.id: Wanted(0.5, _predict_last(config, control.labels))}
    reconcile(client, number, name=VERSION, wanted=wanted, note=tmp_path / "note", find_there=lambda: {task.id})
    labelstudio.switch_model_version(client, number, VERSION)

    _open_prelabelled(page, f"{studio.url}/projects/{number}/data?task={task.id}")
    ticked = page.evaluate(f"JSON.stringify({EDITOR}.selectedValues())")
    assert json.loads(ticked) == selected
    with page.expect_response(lambda reply: reply.request.method == "POST" and "/annotations" in reply.url):
        page.get_by_role("button", name="Submit").first.click()
    [labelled] = annotated_tasks(client, number)
    assert decide(labelled, "choice", set(control.labels)) == {control.labels[-1]}


@pytest.mark.parametrize("attribute", ["", 'choice="multiple"', 'required="true"'])
def test_of_the_random_holdout_nothing_is_ticked_and_the_score_places_it(
    page: Page, studio: LabelStudio, tmp_path: Path, attribute: str
):
    """Submit without a choice labels nothing there; prelabelling switched off, the stream has nothing ticked at all."""
    config = (
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="choice" toName="image" {attribute}>{FLAT}</Choices></View>'
    )
    session = studio.client()
    number = session.post("/api/projects", {"title": "Slice", "label_config": config})["id"]
    session.post(f"/api/projects/{number}/import", [{"data": {"image": IMAGE}}] * 3)
    client = labelstudio.connect(studio.url, studio.token)
    ids = [task.id for task in unlabelled_tasks(client, number)]
    regions = _predict_last(config, ("red", "b"))
    wanted = dict(zip(ids, (Wanted(0.3, regions), Wanted(0.1, ()), Wanted(0.2, regions)), strict=True))
    reconcile(client, number, name=VERSION, wanted=wanted, note=tmp_path / "note", find_there=lambda: set(ids))
    labelstudio.switch_model_version(client, number, VERSION)
    project, by_score = Project(session, number), "tasks:predictions_score"
    assert [task.id for task in project.tasks(ordering=by_score)] == [ids[1], ids[2], ids[0]]

    page.goto(project.url)
    page.get_by_text("Label All Tasks").click()
    page.get_by_role("button", name="Submit").first.wait_for()
    assert page.locator("[class*=current-task__task-id]").inner_text().split()[0] == str(ids[1])
    assert _ticked(page) == []
    page.get_by_role("button", name="Submit").first.click()
    if "required" in attribute:
        page.get_by_text("is required").first.wait_for()
        assert not list(annotated_tasks(client, number))
        session.post(f"/api/tasks/{ids[1]}/annotations/", {"result": regions})
    else:
        page.wait_for_function(f"{EDITOR}?.selectedValues().length > 0")  # the next task, of which something is ticked
        [labelled] = annotated_tasks(client, number)
        with pytest.raises(LeftOut, match=EMPTY):
            decide(labelled, "choice", {"red", "b"}, multiple="multiple" in attribute)

    page.goto(f"{studio.url}/projects/{number}/settings/annotation")
    toggle = page.locator("input[name=show_collab_predictions]")
    expect(toggle).to_be_checked(timeout=PATIENCE_MS)
    page.get_by_text("Use predictions to prelabel tasks").first.click()
    expect(toggle).not_to_be_checked()
    keep_picture(page, "prelabelling")
    page.get_by_role("button", name="Save annotation settings").click()
    page.get_by_text("Saved!").wait_for()
    assert labelstudio.read_project(client, number).model_version == ""
    labelstudio.switch_model_version(client, number, VERSION)
    assert project.settings()["show_collab_predictions"] is False
    assert [task.id for task in project.tasks(ordering=by_score)] == [ids[1], ids[2], ids[0]]
    page.goto(project.url)
    page.get_by_text("Label All Tasks").click()
    page.get_by_role("button", name="Submit").first.wait_for()
    assert page.locator("[class*=current-task__task-id]").inner_text().split()[0] == str(ids[2])
    assert _ticked(page) == []
    page.goto(f"{project.url}?task={ids[0]}")
    page.get_by_role("button", name="Submit").first.wait_for()
    assert _ticked(page) == ["b"]  # a task that is opened from the list is prelabelled whatever the setting says


EDITOR = "window.Htx?.annotationStore?.selected?.names?.get('choice')"


def _open_prelabelled(page: Page, url: str) -> None:
    """Open a task, and wait for the annotation that the editor makes from the prediction.

    It shows the prediction first, may load the task once more, and then at times makes none: the page is opened anew.
    """
    shown = "window.Htx?.annotationStore?.selected"
    filled = f"{shown}?.type === 'annotation' && {shown}.serializeAnnotation().length > 0"
    for _ in range(4):
        page.goto(url)
        with suppress(PlaywrightTimeoutError):
            page.wait_for_function(filled, timeout=15_000)
            page.wait_for_timeout(1500)
            if page.evaluate(filled):
                return
    pytest.fail("the editor made no annotation from the prediction")


def _ticked(page: Page) -> object:
    """What is chosen in the annotation that is open, once it is; what would be chosen has had its time."""
    page.wait_for_function("window.Htx?.annotationStore?.selected?.type === 'annotation'")
    page.wait_for_timeout(1000)
    return json.loads(page.evaluate(f"JSON.stringify({EDITOR}.selectedValues())"))


def _predict_last(config: str, labels: tuple[str, ...]) -> Sequence[Mapping[str, Any]]:
    """The regions of an image that a version finds to be the last of its labels."""
    version = replace(manifest(VERSION), labels=labels, control="choice")
    scores = ImageScores(np.eye(len(labels), dtype=np.float32)[-1], bald=0.1, entropy=0.1)
    target = resolve_target(config, VERSION, "choice", labels)
    [prediction] = build_predictions([scores], version, target, Score.AGREEMENT)
    found: Sequence[Mapping[str, Any]] = prediction["result"]
    return found
