"""Whatever a body holds, a server answers it: with predictions, or with an error that says what is wrong."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.subjects.tiny_model import publish
from server.settings import Device, Settings
from tests.mutation import mutate_json
from tests.server.conftest import make_predict_body, make_task, make_tasks

EXAMPLES = 150
ROUTES = {
    "/predict": make_predict_body([*make_tasks(2), make_task(9, "/data/local-files/?d=a.png")]),
    "/score": {**make_predict_body(make_tasks(2)), "version": "?", "embeddings": True, "passes": True},
    "/setup": {"project": "3.1770000000", "schema": make_predict_body([])["label_config"], "hostname": "", "force": 1},
    "/webhook": {"action": "START_TRAINING", "project": {"id": 3, "title": "birds"}},
}


@pytest.fixture
def client(start_app, repository, tmp_path):
    """A server with a version in use and a folder of local files."""
    publish(repository)
    chosen = Settings(
        models=repository.root, provider=Device.CPU, poll_s=3600, max_batch_images=8, local_files_root=tmp_path
    )
    return start_app(chosen).test_client()


def check(reply):
    """An answer of the server's own, or a refusal that names the fault."""
    assert reply.status_code in (200, 400, 409, 422), reply.get_data(as_text=True)
    document = json.loads(reply.get_data(), parse_constant=pytest.fail)
    assert reply.status_code == 200 or {"error", "detail", "request_id"} <= document.keys()


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 2**32))
def test_any_edit_of_a_body_is_answered(client, repository, route, number):
    """Never by an error of the server's."""
    body = {**ROUTES[route], **({"version": repository.current()} if route == "/score" else {})}
    check(client.post(route, data=mutate_json(json.dumps(body), number), content_type="application/json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "reference",
    [
        "\ud800",
        "/data/upload/\ud800.png",
        "/data/local-files/?d=\ud800",
        "/data/local-files/?d=%00",
        "data:image/png;base64,\ud800",
        "data:\ud800",
        "http://\ud800/",
        "http://[/",
        "s3://\ud800/a",
    ],
)
def test_a_reference_of_half_a_character_is_one_images_error(client, reference):
    """The others of the request are scored."""
    reply = client.post("/predict", json=make_predict_body([make_task(1, reference), *make_tasks(1)]))
    assert reply.status_code == 200
    bad, good = reply.get_json()["results"]
    assert bad == {}
    assert good["score"]
