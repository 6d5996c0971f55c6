"""What Label Studio's bulk action leaves of a prediction, unlike one that was ticked and submitted."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from contract.scores.sure import mark
from demo.label_studio import LabelStudio
from tests.system.test_browser import FLAT, IMAGE, VERSION, _open_prelabelled, _predict_last
from trainer import labelstudio
from trainer.labels.annotations import EMPTY, LeftOut, confirmed_groups, decide, is_confirmed
from trainer.labelstudio.tasks import annotated_tasks, unlabelled_tasks
from trainer.ranking.reconcile import Wanted, reconcile

CONFIG = f'<View><Image name="image" value="$image"/><Choices name="choice" toName="image">{FLAT}</Choices></View>'


def test_what_was_confirmed_in_bulk_is_known_for_good(page: Page, studio: LabelStudio, tmp_path: Path):
    """By its copy of the mark, and by no time noted; the prediction is forgotten once it is removed."""
    session, client = studio.client(), labelstudio.connect(studio.url, studio.token)
    number = session.post("/api/projects", {"title": "Bulk", "label_config": CONFIG})["id"]
    session.post(f"/api/projects/{number}/import", [{"data": {"image": IMAGE}}] * 4)
    offered, other, submitted, held_out = (task.id for task in unlabelled_tasks(client, number))
    regions = _predict_last(CONFIG, ("red", "b"))
    marked = [{**region, "meta": {**region["meta"], "tab": mark(VERSION, 1)}} for region in regions]
    wanted = {task: Wanted(0.5, marked) for task in (offered, submitted)}
    wanted |= {other: Wanted(0.5, regions), held_out: Wanted(0.5, ())}
    reconcile(client, number, name=VERSION, wanted=wanted, note=tmp_path / "note", find_there=lambda: {*wanted})
    labelstudio.switch_model_version(client, number, VERSION)

    path = f"/api/dm/actions?id=predictions_to_annotations&project={number}"
    selected = {"all": False, "included": [offered, other, held_out]}
    session.post(path, {"selectedItems": selected, "model_version": VERSION})
    _open_prelabelled(page, f"{studio.url}/projects/{number}/data?task={submitted}")
    with page.expect_response(lambda reply: reply.request.method == "POST" and "/annotations" in reply.url):
        page.get_by_role("button", name="Submit").first.click()

    tasks = {task["id"]: task for task in annotated_tasks(client, number)}
    made = {task: each["annotations"][0] for task, each in tasks.items()}
    assert all(made[task]["parent_prediction"] for task in (offered, other, held_out))
    assert [made[task]["lead_time"] is None for task in (offered, other, held_out, submitted)] == [True] * 3 + [False]

    labelstudio.switch_model_version(client, number, "")
    labelstudio.delete_predictions(client, number, VERSION)
    tasks = {task["id"]: task for task in annotated_tasks(client, number)}
    assert not any(each["annotations"][0]["parent_prediction"] for each in tasks.values())
    assert {task for task, each in tasks.items() if is_confirmed(each)} == {offered, other}
    assert confirmed_groups(tasks[offered]) == {(VERSION, 1)}
    assert {decide(tasks[task], "choice", {"red", "b"}) for task in (offered, other, submitted)} == {frozenset({"b"})}
    with pytest.raises(LeftOut, match=EMPTY):
        decide(tasks[held_out], "choice", {"red", "b"})
