"""One server for several projects, each with a separate model."""

import dataclasses
import re

import pytest

from bench.subjects.tiny_model import TinyModel, publish
from contract.versions.repository import RANKINGS_FOLDER
from contract.versions.results import ProjectState, TrainingRecord
from contract.versions.training_requests import find_requests
from tests.server.conftest import CONFIG, make_predict_body, make_tasks, read_metric, service_of

CARS = ("car", "lorry", "van")
CARS_CONFIG = CONFIG.replace("ant", "car").replace("A bee", "Lorry").replace("bee", "lorry").replace("cat", "van")
OTHERS_CONFIG = CONFIG.replace("ant", "oak").replace("bee", "elm").replace("cat", "fir")


def trained_on(project):
    return TrainingRecord(project=ProjectState(project, 3, "2026-01-02T03:04:05Z"))


def rank(repository, project):
    """Write a record of a ranking; only its time is used."""
    repository.documents(RANKINGS_FOLDER).write(f"{project}.json", b"{}")


def serving_version(client, config=CONFIG, project=3, prefix=""):
    """Return the version that predicts for a project."""
    reply = client.post(
        f"{prefix}/predict", json={**make_predict_body(make_tasks(1), config), "project": f"{project}.1"}
    )
    assert reply.status_code == 200, reply.json
    [prediction] = reply.json["results"]
    return prediction.get("model_version")


def set_up(client, config, project=7):
    return client.post("/setup", json={"project": f"{project}.1", "schema": config})


def poll(client):
    service_of(client).models.poll()


@pytest.fixture
def birds(repository):
    return repository.for_model("birds")


@pytest.fixture
def cars(repository):
    return repository.for_model("cars")


@pytest.fixture
def two_models(start_app, birds, cars):
    """A client of a server with two models of different labels, and their versions."""
    names = publish(birds), publish(cars, labels=CARS, seed=1)
    return start_app().test_client(), *names


class TestChoice:
    def test_the_model_is_chosen_by_the_projects_labels(self, two_models):
        """Or by the requested version. /setup returns the version of the predictions.

        Otherwise Label Studio would store every prediction again at every call.
        """
        client, *versions = two_models
        for config, version in zip((CONFIG, CARS_CONFIG), versions, strict=True):
            assert serving_version(client, config) == version
            assert set_up(client, config).json == {"model_version": version}
            body = {**make_predict_body(make_tasks(1), config), "version": version}
            assert client.post("/score", json=body).json["model_version"] == version
            assert client.get(f"/health?version={version}").json["model_version"] == version
        reply = client.post("/score", json={**body, "version": "none"})
        assert (reply.status_code, reply.json["error"]) == (409, "other_version")
        assert all(version in reply.json["detail"] for version in versions)
        health = client.get("/health").json
        assert (health["status"], health["model"], health["model_version"]) == ("UP", None, None)
        listed = [(each["model"], each["model_version"]) for each in health["models"]]
        assert listed == list(zip(("birds", "cars"), versions, strict=True))

    def test_unknown_labels_are_refused_with_those_of_all_models(self, two_models):
        """An unfinished config is accepted."""
        client, *_ = two_models
        for config in (None, "", "<View></View>", "no xml"):
            reply = set_up(client, config)
            assert (reply.status_code, reply.json) == (200, {"model_version": "INITIAL"})
        reply = set_up(client, OTHERS_CONFIG)
        assert (reply.status_code, reply.json["error"]) == (400, "label_mismatch")
        assert "birds: ant, bee, cat; cars: car, lorry, van" in reply.status
        assert "label: oak, elm, fir" in reply.status
        assert client.post("/predict", json=make_predict_body(make_tasks(1), OTHERS_CONFIG)).status_code == 400
        assert client.get("/health").json["refused_project"].startswith("project 7: ")

    def test_models_with_the_same_labels_are_ambiguous(self, start_app, birds, cars):
        """The newest that was trained on it is chosen. An address with a model's name is never ambiguous."""
        first, second = publish(birds, training=trained_on(1)), publish(cars, training=trained_on(2))
        client = start_app().test_client()
        reply = set_up(client, CONFIG)
        assert (reply.status_code, reply.json["error"]) == (400, "ambiguous_project")
        assert "(birds, cars)" in reply.status
        assert "/p/NAME" in reply.status
        assert serving_version(client, project=7, prefix="/p/cars") == second
        assert (serving_version(client, project=1), serving_version(client, project=2)) == (first, second)
        newest = publish(cars, training=trained_on(1))
        poll(client)
        assert serving_version(client, project=1) == newest

    def test_the_model_that_ranked_last_precedes_one_trained_on_the_project(self, start_app, birds, cars):
        """Label Studio sorts by its scores. It must still know the labels."""
        publish(birds, training=trained_on(1))
        ranked_by = publish(cars, training=trained_on(2))
        rank(cars, 1)
        client = start_app().test_client()
        assert serving_version(client, project=1) == ranked_by
        mismatched = publish(cars, labels=CARS)
        poll(client)
        assert serving_version(client, project=1) != mismatched

    def test_a_project_ranked_by_a_cold_start_is_accepted(self, start_app, birds, cars):
        publish(birds)
        rank(cars, 5)
        client = start_app().test_client()
        assert set_up(client, CARS_CONFIG, project=5).json == {"model_version": "INITIAL"}
        assert serving_version(client, CARS_CONFIG, project=5) is None


class TestByName:
    def test_all_routes_exist_for_each_model(self, two_models, birds):
        client, of_birds, of_cars = two_models
        assert client.get("/p/birds/health").json["model_version"] == of_birds
        assert client.post("/p/cars/setup", json={"project": "3.1"}).json == {"model_version": of_cars}
        assert client.get("/p/birds/versions").json == {"versions": [of_birds]}
        assert client.get("/versions").json == {"versions": sorted([of_birds, of_cars])}
        body = {**make_predict_body(make_tasks(1)), "version": of_birds}
        assert client.post("/p/birds/score", json=body).status_code == 200
        assert client.post("/p/cars/score", json=body).status_code == 409
        reply = client.post("/p/cars/predict", json=make_predict_body(make_tasks(1)))
        assert (reply.status_code, reply.json["error"]) == (400, "label_mismatch")
        client.post("/p/birds/webhook", json={"action": "START_TRAINING", "project": {"id": 3}})
        assert [request.project for request in find_requests(birds)] == [3]

    def test_an_unknown_model_is_an_error_that_lists_models(self, two_models):
        client, *_ = two_models
        for route in ("health", "versions", "", "report/20260101T000000000Z-abcdef/"):
            reply = client.get(f"/p/brids/{route}")
            assert (reply.status_code, reply.json["error"]) == (404, "unknown_model")
            assert "birds, cars" in reply.json["detail"]
        assert "birds" in client.post("/p/brids/setup", json={"project": "1"}).status

    def test_routes_of_models_share_metrics_and_credentials_with_the_root(self, start_app, settings, birds):
        publish(birds)
        client = start_app(dataclasses.replace(settings, basic_auth="u:p", threads=1)).test_client()
        assert client.post("/p/birds/predict", json=make_predict_body(make_tasks(1))).status_code == 401
        assert client.get("/p/birds/health").status_code == 200
        assert read_metric(client, "http_requests_total", route="/predict", status="401") == 1
        assert read_metric(client, "http_requests_total", route="/health", status="200") == 1


def test_start_training_requests_the_projects_model_or_any(two_models, birds, cars, repository):
    """If no model knows the labels yet, any trainer that watches the project may answer."""
    client, *_ = two_models

    def start_training(config):
        body = {"action": "START_TRAINING", "project": {"id": 3, "label_config": config}}
        assert client.post("/webhook", json=body).json["status"] == "requested"

    start_training(CARS_CONFIG)
    assert [len(find_requests(each)) for each in (birds, cars)] == [0, 1]
    for _ in range(2):
        start_training(OTHERS_CONFIG)
    for model in (birds, repository.for_model("trees")):
        assert [request.project for request in find_requests(model)] == [3]


class TestPages:
    def test_the_root_page_links_to_the_pages_of_models(self, two_models, birds):
        client, of_birds, of_cars = two_models
        rank(birds, 12)
        poll(client)
        text, page = client.get("/").text, client.get("/p/birds/").text
        assert all(each in text for each in ("2 models", of_birds, of_cars, "12"))
        assert re.findall('href="(p/[^"]*)"', text) == ["p/birds/", "p/cars/"]
        assert of_birds in page
        assert of_cars not in page
        assert 'href="../../"' in page

    def test_an_address_without_its_final_slash_is_redirected(self, start_app, repository):
        publish(repository.for_model("a:b c"))
        client = start_app().test_client()
        reply = client.get("/p/a%3Ab%20c")
        assert (reply.status_code, reply.headers["Location"]) == (308, "./a%3Ab%20c/")
        assert client.get("/p/a%3Ab%20c/").status_code == 200

    def test_reports_exist_at_the_root_and_below_their_model(self, start_app, birds, cars):
        publish(cars)
        address = f"/report/{publish(birds, report={'index.html': b'of birds'})}/"
        client = start_app().test_client()
        for prefix in ("", "/p/birds"):
            assert client.get(prefix + address).data == b"of birds"
        assert client.get(f"/p/cars{address}").status_code == 404

    def test_a_refused_model_is_reported_and_others_are_served(self, start_app, birds, cars):
        version = publish(birds)
        publish(cars, labels=CARS, probe_of=TinyModel.draw(seed=7))
        client = start_app().test_client()
        assert client.get("/health/ready").status_code == 200
        assert serving_version(client) == version
        for text in (client.get("/").text, client.get("/p/cars/").text, client.get("/health").json["detail"]):
            assert "was refused" in text
        assert client.get("/p/birds/health").json["detail"] is None
        assert client.post("/p/cars/predict", json=make_predict_body(make_tasks(1), CARS_CONFIG)).status_code == 503


def test_metrics_are_per_model_and_removed_with_it(two_models, cars):
    client, *_ = two_models
    serving_version(client, CARS_CONFIG)
    counts = {name: read_metric(client, "images_total", model=name, outcome="ok") for name in ("birds", "cars")}
    assert counts == {"birds": 0, "cars": 1}
    assert read_metric(client, "bald_score_count", model="cars") == 1
    cars.folder.rename(cars.root / ".gone")
    poll(client)
    text = client.get("/metrics").text
    assert 'model="cars"' not in text
    assert 'model="birds"' in text


def test_the_model_setting_restricts_the_server(start_app, settings, birds, cars):
    version = publish(birds)
    publish(cars, labels=CARS)
    client = start_app(dataclasses.replace(settings, model="birds")).test_client()
    assert serving_version(client) == serving_version(client, prefix="/p/birds") == version
    assert client.get("/p/cars/health").status_code == 404
    assert client.get("/health").json["model"] == "birds"
    assert client.post("/predict", json=make_predict_body(make_tasks(1), CARS_CONFIG)).status_code == 400
