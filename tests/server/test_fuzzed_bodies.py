"""Mutated request bodies get predictions or an error with details, never a crash."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mutation import mutate_json
from tests.server.conftest import make_predict_body, make_task, make_tasks

EXAMPLES = 60
ROUTES = {
    "/predict": make_predict_body([*make_tasks(2), make_task(9, "/data/local-files/?d=a.png")]),
    "/score": {**make_predict_body(make_tasks(2)), "version": "?", "embeddings": True, "passes": True},
    "/setup": {"project": "3.1770000000", "schema": make_predict_body([])["label_config"], "hostname": "", "force": 1},
    "/webhook": {"action": "START_TRAINING", "project": {"id": 3, "title": "birds"}},
}


@pytest.fixture
def client(serve, tmp_path):
    """A server with a version in use and a folder of local files."""
    return serve(local_files_root=tmp_path)


def check(reply):
    """Check that the reply has a result, or an error with details."""
    assert reply.status_code in (200, 400, 409, 422), reply.get_data(as_text=True)
    document = json.loads(reply.get_data(), parse_constant=pytest.fail)
    assert reply.status_code == 200 or {"error", "detail", "request_id"} <= document.keys()


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 2**32))
def test_mutated_bodies_get_a_result_or_an_error(client, repository, route, number):
    body = {**ROUTES[route], **({"version": repository.current()} if route == "/score" else {})}
    check(client.post(route, data=mutate_json(json.dumps(body), number), content_type="application/json"))
