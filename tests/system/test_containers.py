"""The image recipes and the composition, as far as they can be checked without an engine."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from contract.versions.repository import Repository
from contract.versions.training_requests import REQUESTS_FOLDER
from demo.product import CHECKOUT
from server.settings import Settings

RECIPES = ("Dockerfile.server", "Dockerfile.trainer")


def _instructions(recipe: str) -> list[tuple[str, str]]:
    text = (CHECKOUT / recipe).read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def _values(recipe: str, instruction: str) -> list[str]:
    return [value for name, value in _instructions(recipe) if name == instruction]


def _compose(name: str = "compose.yaml") -> dict:
    return yaml.safe_load((CHECKOUT / name).read_text())


def _haproxy(name: str) -> str:
    return (CHECKOUT / "deploy" / "haproxy" / name).read_text()


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_starts_from_a_slim_python(recipe: str):
    """The base brings Python and nothing else."""
    assert _values(recipe, "FROM") == ["python:${PYTHON}-slim"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_does_not_run_as_root(recipe: str):
    """The user is switched before the command, and not back."""
    assert _values(recipe, "USER") == ["labelnext"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_commands_take_signals_themselves(recipe: str):
    """Commands are in exec form: no shell stands between them and SIGTERM."""
    commands = [value for name in ("CMD", "ENTRYPOINT") for value in _values(recipe, name)]
    assert commands
    assert all(isinstance(json.loads(command), list) for command in commands)


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_says_how_its_health_is_checked(recipe: str):
    """The server is asked over HTTP; the trainer ends by itself."""
    [check] = _values(recipe, "HEALTHCHECK")
    assert ("/health" in check) == (recipe == "Dockerfile.server")


def test_the_health_check_is_a_program():
    """What the server's health check runs is Python that compiles."""
    [check] = _values("Dockerfile.server", "HEALTHCHECK")
    program = json.loads(check[check.index("[") :])[2]
    compile(program, "HEALTHCHECK", "exec")


@pytest.mark.parametrize("variant", ["gpu", "cpu"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_copies_what_exists_and_no_other_package(recipe: str, variant: str):
    """Sources of COPY are there and pass .dockerignore; server and trainer do not see each other."""
    allowed = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [
        source.replace("${VARIANT}", variant) for value in _values(recipe, "COPY") for source in shlex.split(value)[:-1]
    ]
    assert [source for source in sources if not (CHECKOUT / source).exists()] == []
    assert [source for source in sources if source.split("/")[0] not in allowed] == []
    packages = {source for source in sources if "/" not in source}
    assert packages == {"contract", recipe.partition(".")[2]}


@pytest.mark.parametrize("variant", ["gpu", "cpu"])
def test_all_requirements_that_are_installed_are_copied(variant: str):
    """A requirements file that another one names is in the image too."""
    [copied] = [value for value in _values("Dockerfile.server", "COPY") if "requirements" in value]
    names = {source.replace("${VARIANT}", variant) for source in shlex.split(copied)[:-1]}
    included = {
        f"requirements/{line.split()[1]}"
        for name in names
        for line in (CHECKOUT / name).read_text().splitlines()
        if line.startswith("-r ")
    }
    assert included <= names


def test_label_studio_may_talk_to_private_addresses():
    """Both of Label Studio's guards are off: the server's address in a composition is private."""
    environment = _compose()["services"]["label-studio"]["environment"]
    assert environment["ML_BLOCK_LOCAL_IP"] == environment["SSRF_PROTECTION_ENABLED"] == "false"


def test_the_composition_runs_the_label_studio_that_is_tested():
    """The image is of the version that the tests install."""
    pinned = re.search(r"label-studio==(\S+)", (CHECKOUT / "requirements/label-studio.txt").read_text())
    assert pinned
    assert _compose()["services"]["label-studio"]["image"].endswith(f":{pinned[1]}")


def test_server_and_trainer_share_the_models():
    """The trainer writes to the volume that the server reads, and only reads."""
    services = _compose()["services"]
    assert "models:/models" in services["trainer"]["volumes"]
    assert "models:/models:ro" in services["server"]["volumes"]


def test_requests_to_train_find_their_way():
    """The server writes them in a volume of its own within the models that it only reads, and the trainer sees it."""
    services = _compose()["services"]
    assert all("requests:/models/requests" in services[name]["volumes"] for name in ("server", "trainer"))
    assert "requests" in _compose()["volumes"]
    assert Repository(Path("/models")).root / REQUESTS_FOLDER == Path("/models/requests")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_place_of_the_requests_is_there_before_it_is_mounted(recipe: str):
    """A new volume of models has it whichever container comes first; in a read-only one it could not be made."""
    [made] = re.findall(r"install --directory --owner labelnext ([^&]*)", " ".join(_values(recipe, "RUN")))
    assert {"/models", "/models/requests"} <= set(made.split())


def test_the_trainer_finds_the_server():
    """Rankings are scored by the server of the composition, at its name and port there."""
    services = _compose()["services"]
    [port] = _values("Dockerfile.server", "EXPOSE")
    assert services["trainer"]["environment"]["LABELNEXT_SERVERS"] == f"http://server:{port}"


@pytest.mark.parametrize("program", ["server", "trainer", "watch"])
def test_what_browsers_call_label_studio_is_known_to_all(program: str):
    """It stands in references to local files, and its name within the composition means nothing outside."""
    services = _compose()["services"]
    public = services[program]["environment"]["LABELNEXT_LABEL_STUDIO_PUBLIC_URL"]
    assert public == services["label-studio"]["environment"]["LABEL_STUDIO_HOST"]


def test_local_files_are_served_from_where_they_are_mounted():
    """Label Studio refuses them unless told to serve them, and then serves what lies below one folder."""
    studio = _compose()["services"]["label-studio"]
    root = studio["environment"]["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"]
    assert studio["environment"]["LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED"] == "true"
    assert [volume for volume in studio["volumes"] if volume.endswith(f":{root}:ro")]


def test_the_proxy_alone_is_reached_from_the_host():
    """Servers can be scaled: none of them claims a port, and the proxy has the one that was theirs."""
    services = _compose()["services"]
    [port] = _values("Dockerfile.server", "EXPOSE")
    assert "ports" not in services["server"]
    assert services["proxy"]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_the_proxy_has_its_configuration():
    """What it is started with is mounted, from where the repository has it, and read-only."""
    proxy = _compose()["services"]["proxy"]
    [(source, target, mode)] = [volume.split(":") for volume in proxy["volumes"]]
    assert mode == "ro"
    found = [Path(argument) for argument in proxy["command"] if argument.startswith("/")]
    assert found == [Path(target) / "haproxy.cfg", Path(target) / "docker.cfg"]
    assert all((CHECKOUT / source / path.name).exists() for path in found)


def test_the_proxy_finds_the_servers():
    """By the name and port of the service, and listens where the host's port leads."""
    [port] = _values("Dockerfile.server", "EXPOSE")
    assert "server" in _compose()["services"]
    assert re.search(rf"server-template \w+ \d+ server:{port} resolvers docker", _haproxy("docker.cfg"))
    assert f"presetenv LABELNEXT_PROXY_BIND :{port}" in _haproxy("haproxy.cfg")


def test_the_proxy_waits_longer_than_servers_take():
    """A server answers by its deadline; the proxy gives up after it, and before Label Studio does."""
    [seconds] = re.findall(r"timeout server (\d+)s", _haproxy("haproxy.cfg"))
    patience = _compose()["services"]["label-studio"]["environment"]["ML_TIMEOUT_PREDICT"]
    assert Settings().deadline_s < int(seconds) < int(patience)


def test_a_stopped_proxy_finishes_what_it_has_passed_on():
    """Its grace is that of the servers."""
    services = _compose()["services"]
    assert services["proxy"]["stop_grace_period"] == services["server"]["stop_grace_period"]


def test_the_trainer_runs_only_when_asked():
    """`docker compose up` starts no training."""
    assert _compose()["services"]["trainer"]["profiles"] == ["train"]


def test_the_gpu_file_changes_services_that_there_are():
    """compose.gpu.yaml adds to compose.yaml."""
    assert set(_compose("compose.gpu.yaml")["services"]) <= set(_compose()["services"])
