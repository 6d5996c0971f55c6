"""One server for several projects, each with a model of its own."""

import dataclasses
import re

import pytest

from bench.subjects.tiny_model import TinyModel, publish
from contract.versions.repository import RANKINGS_FOLDER
from contract.versions.results import ProjectState, TrainingRecord
from contract.versions.training_requests import find_requests
from tests.server.conftest import CONFIG, counted, make_predict_body, make_tasks, service_of

CARS = ("car", "lorry", "van")
CARS_CONFIG = CONFIG.replace("ant", "car").replace("A bee", "Lorry").replace("bee", "lorry").replace("cat", "van")
OTHERS_CONFIG = CONFIG.replace("ant", "oak").replace("bee", "elm").replace("cat", "fir")


def trained_on(project):
    return TrainingRecord(project=ProjectState(project, 3, "2026-01-02T03:04:05Z"))


def rank(repository, project):
    """Leave a record of a ranking, of which only its time counts here."""
    repository.documents(RANKINGS_FOLDER).write(f"{project}.json", b"{}")


def answering(client, config=CONFIG, project=3, prefix=""):
    """The version that answers for a project."""
    reply = client.post(
        f"{prefix}/predict", json={**make_predict_body(make_tasks(1), config), "project": f"{project}.1"}
    )
    assert reply.status_code == 200, reply.json
    [prediction] = reply.json["results"]
    return prediction.get("model_version")


def set_up(client, config, project=7):
    return client.post("/setup", json={"project": f"{project}.1", "schema": config})


def look(client):
    service_of(client).models.poll()


@pytest.fixture
def birds(repository):
    return repository.for_model("birds")


@pytest.fixture
def cars(repository):
    return repository.for_model("cars")


@pytest.fixture
def two(start_app, birds, cars):
    """A client of a server with two models of different labels, and the version of each."""
    names = publish(birds), publish(cars, labels=CARS, seed=1)
    return start_app().test_client(), *names


class TestChoice:
    def test_each_project_is_answered_by_the_model_of_its_labels(self, two):
        """By the labelling config alone, unless a version is asked for; /setup names what predictions are stamped with.

        Else Label Studio would store every prediction again at every call.
        """
        client, *versions = two
        for config, version in zip((CONFIG, CARS_CONFIG), versions, strict=True):
            assert answering(client, config) == version
            assert set_up(client, config).json == {"model_version": version}
            body = {**make_predict_body(make_tasks(1), config), "version": version}
            assert client.post("/score", json=body).json["model_version"] == version
            assert client.get(f"/health?version={version}").json["model_version"] == version
        reply = client.post("/score", json={**body, "version": "none"})
        assert (reply.status_code, reply.json["error"]) == (409, "other_version")
        assert all(version in reply.json["detail"] for version in versions)
        health = client.get("/health").json
        assert (health["status"], health["model"], health["model_version"]) == ("UP", None, None)
        told = [(each["model"], each["model_version"]) for each in health["models"]]
        assert told == list(zip(("birds", "cars"), versions, strict=True))

    def test_labels_that_no_model_knows_are_refused_and_told_what_there_is(self, two):
        """But not a config that is still being written: which model will answer is not known yet."""
        client, *_ = two
        for config in (None, "", "<View></View>", "no xml"):
            reply = set_up(client, config)
            assert (reply.status_code, reply.json) == (200, {"model_version": "INITIAL"})
        reply = set_up(client, OTHERS_CONFIG)
        assert (reply.status_code, reply.json["error"]) == (400, "label_mismatch")
        assert "birds: ant, bee, cat; cars: car, lorry, van" in reply.status
        assert "label: oak, elm, fir" in reply.status
        assert client.post("/predict", json=make_predict_body(make_tasks(1), OTHERS_CONFIG)).status_code == 400
        assert client.get("/health").json["refused_project"].startswith("project 7: ")

    def test_of_models_with_the_same_labels_none_is_guessed(self, start_app, birds, cars):
        """The newest that was trained on a project answers for it; what is asked for by its address always does."""
        first, second = publish(birds, training=trained_on(1)), publish(cars, training=trained_on(2))
        client = start_app().test_client()
        reply = set_up(client, CONFIG)
        assert (reply.status_code, reply.json["error"]) == (400, "ambiguous_project")
        assert "(birds, cars)" in reply.status
        assert "/p/NAME" in reply.status
        assert answering(client, project=7, prefix="/p/cars") == second
        assert (answering(client, project=1), answering(client, project=2)) == (first, second)
        newest = publish(cars, training=trained_on(1))
        look(client)
        assert answering(client, project=1) == newest

    def test_the_model_that_ranked_the_project_last_goes_before_one_trained_on_it(self, start_app, birds, cars):
        """Its scores are those that Label Studio sorts by; the project's labels must be its own all the same."""
        publish(birds, training=trained_on(1))
        ranking = publish(cars, training=trained_on(2))
        rank(cars, 1)
        client = start_app().test_client()
        assert answering(client, project=1) == ranking
        strange = publish(cars, labels=CARS)
        look(client)
        assert answering(client, project=1) != strange

    def test_a_project_that_was_ranked_before_its_model_is_published_is_welcome(self, start_app, birds, cars):
        publish(birds)
        rank(cars, 5)
        client = start_app().test_client()
        assert set_up(client, CARS_CONFIG, project=5).json == {"model_version": "INITIAL"}
        assert answering(client, CARS_CONFIG, project=5) is None


class TestByName:
    def test_every_route_is_there_for_each_model(self, two, birds):
        client, of_birds, of_cars = two
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

    def test_a_model_that_there_is_not_is_told_with_those_there_are(self, two):
        client, *_ = two
        for route in ("health", "versions", "", "report/20260101T000000000Z-abcdef/"):
            reply = client.get(f"/p/brids/{route}")
            assert (reply.status_code, reply.json["error"]) == (404, "unknown_model")
            assert "birds, cars" in reply.json["detail"]
        assert "birds" in client.post("/p/brids/setup", json={"project": "1"}).status

    def test_it_is_counted_and_guarded_as_the_route_at_the_root(self, start_app, settings, birds):
        publish(birds)
        client = start_app(dataclasses.replace(settings, basic_auth="u:p", threads=1)).test_client()
        assert client.post("/p/birds/predict", json=make_predict_body(make_tasks(1))).status_code == 401
        assert client.get("/p/birds/health").status_code == 200
        assert counted(client, "http_requests_total", route="/predict", status="401") == 1
        assert counted(client, "http_requests_total", route="/health", status="200") == 1


def test_start_training_asks_the_model_of_the_project_or_whoever_watches_it(two, birds, cars, repository):
    """Its trainer finds it, and no other; where there is no model yet, its first training may be asked for."""
    client, *_ = two

    def press(config):
        body = {"action": "START_TRAINING", "project": {"id": 3, "label_config": config}}
        assert client.post("/webhook", json=body).json["status"] == "requested"

    press(CARS_CONFIG)
    assert [len(find_requests(each)) for each in (birds, cars)] == [0, 1]
    for _ in range(2):
        press(OTHERS_CONFIG)
    for model in (birds, repository.for_model("trees")):
        assert [request.project for request in find_requests(model)] == [3]


class TestPages:
    def test_one_place_lists_the_models_and_leads_to_the_page_of_each(self, two, birds):
        client, of_birds, of_cars = two
        rank(birds, 12)
        look(client)
        text, page = client.get("/").text, client.get("/p/birds/").text
        assert all(each in text for each in ("2 models", of_birds, of_cars, "12"))
        assert re.findall('href="(p/[^"]*)"', text) == ["p/birds/", "p/cars/"]
        assert of_birds in page
        assert of_cars not in page
        assert 'href="../../"' in page

    def test_an_address_without_its_slash_leads_on(self, start_app, repository):
        publish(repository.for_model("a:b c"))
        client = start_app().test_client()
        reply = client.get("/p/a%3Ab%20c")
        assert (reply.status_code, reply.headers["Location"]) == (308, "./a%3Ab%20c/")
        assert client.get("/p/a%3Ab%20c/").status_code == 200

    def test_reports_are_found_by_the_version_and_below_the_model(self, start_app, birds, cars):
        publish(cars)
        address = f"/report/{publish(birds, report={'index.html': b'of birds'})}/"
        client = start_app().test_client()
        for prefix in ("", "/p/birds"):
            assert client.get(prefix + address).data == b"of birds"
        assert client.get(f"/p/cars{address}").status_code == 404

    def test_a_model_that_is_refused_is_told_and_keeps_no_other_from_serving(self, start_app, birds, cars):
        version = publish(birds)
        publish(cars, labels=CARS, probe_of=TinyModel.draw(seed=7))
        client = start_app().test_client()
        assert client.get("/health/ready").status_code == 200
        assert answering(client) == version
        for said in (client.get("/").text, client.get("/p/cars/").text, client.get("/health").json["detail"]):
            assert "was refused" in said
        assert client.get("/p/birds/health").json["detail"] is None
        assert client.post("/p/cars/predict", json=make_predict_body(make_tasks(1), CARS_CONFIG)).status_code == 503


def test_metrics_tell_models_apart_and_forget_one_that_is_gone(two, cars):
    client, *_ = two
    answering(client, CARS_CONFIG)
    counts = {name: counted(client, "images_total", model=name, outcome="ok") for name in ("birds", "cars")}
    assert counts == {"birds": 0, "cars": 1}
    assert counted(client, "bald_score_count", model="cars") == 1
    cars.folder.rename(cars.root / ".gone")
    look(client)
    text = client.get("/metrics").text
    assert 'model="cars"' not in text
    assert 'model="birds"' in text


def test_a_server_may_be_for_one_model_alone(start_app, settings, birds, cars):
    version = publish(birds)
    publish(cars, labels=CARS)
    client = start_app(dataclasses.replace(settings, model="birds")).test_client()
    assert answering(client) == answering(client, prefix="/p/birds") == version
    assert client.get("/p/cars/health").status_code == 404
    assert client.get("/health").json["model"] == "birds"
    assert client.post("/predict", json=make_predict_body(make_tasks(1), CARS_CONFIG)).status_code == 400
