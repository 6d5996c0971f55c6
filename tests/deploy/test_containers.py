"""The image recipes and the composition, as far as they can be checked without an engine."""

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from contract.versions.training_requests import REQUESTS_FOLDER
from demo.product import CHECKOUT
from server.settings import Settings
from trainer.settings import Environment

RECIPES = ("Dockerfile.server", "Dockerfile.trainer")
SERVICES = yaml.safe_load((CHECKOUT / "compose.yaml").read_text(encoding="utf-8"))["services"]
HAPROXY = CHECKOUT / "deploy" / "haproxy"


def values(recipe: str, instruction: str) -> list[str]:
    """What stands behind an instruction, each time that a recipe has it."""
    text = re.sub(r"^#.*\n", "", (CHECKOUT / recipe).read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.partition(" ") for line in text.replace("\\\n", " ").splitlines()]
    return [value.strip() for name, _, value in lines if name == instruction]


[PORT] = values("Dockerfile.server", "EXPOSE")


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_runs_one_program_of_a_slim_python_as_its_own_user(recipe: str):
    """The user is switched before the command, and not back; no shell stands between the command and SIGTERM."""
    assert values(recipe, "FROM") == ["python:${PYTHON}-slim"]
    assert values(recipe, "USER") == ["labelnext"]
    commands = [value for name in ("CMD", "ENTRYPOINT") for value in values(recipe, name)]
    assert commands
    assert all(isinstance(json.loads(command), list) for command in commands)


def test_the_health_of_the_server_is_asked_for_and_the_trainer_ends_by_itself():
    [check] = values("Dockerfile.server", "HEALTHCHECK")
    program = json.loads(check[check.index("[") :])[2]
    compile(program, "HEALTHCHECK", "exec")
    assert f":{PORT}/health/live" in program
    assert values("Dockerfile.trainer", "HEALTHCHECK") == ["NONE"]


@pytest.mark.parametrize("variant", ["gpu", "cpu"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_copies_what_exists_and_no_other_package(recipe: str, variant: str):
    """Sources of COPY are there, pass .dockerignore, and name no requirements that are not copied."""
    allowed = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [
        source.replace("${VARIANT}", variant) for value in values(recipe, "COPY") for source in shlex.split(value)[:-1]
    ]
    assert [source for source in sources if not (CHECKOUT / source).exists()] == []
    assert [source for source in sources if source.split("/")[0] not in allowed] == []
    assert {source for source in sources if "/" not in source} == {"contract", recipe.partition(".")[2]}
    requirements = [(CHECKOUT / source).read_text() for source in sources if "/" in source]
    named = {f"requirements/{name}" for text in requirements for name in re.findall(r"^-r (\S+)", text, re.MULTILINE)}
    assert named <= set(sources)


def test_no_data_file_of_a_package_is_left_out_of_the_images():
    """Pages and reports are made from templates, which lie in the sub-packages: no pattern leaves such files out."""
    patterns = [line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#!"]
    assert patterns == ["*", "**/__pycache__"]


def test_the_composition_runs_the_label_studio_that_is_tested():
    """Its guards against private addresses, such as ours, are off, and local files served from where they are."""
    pinned = re.search(r"label-studio==(\S+)", (CHECKOUT / "requirements/label-studio.txt").read_text())
    studio = SERVICES["label-studio"]
    environment = studio["environment"]
    assert pinned
    assert studio["image"].endswith(f":{pinned[1]}")
    assert environment["ML_BLOCK_LOCAL_IP"] == environment["SSRF_PROTECTION_ENABLED"] == "false"
    assert environment["LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED"] == "true"
    root = environment["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"]
    assert [volume for volume in studio["volumes"] if volume.endswith(f":{root}:ro")]


def test_the_server_reads_what_the_trainer_writes_and_leaves_requests_to_train():
    """Models are read-only to the server, but for the folder of requests, which both mount within them."""
    requests = f"requests:/models/{REQUESTS_FOLDER}"
    assert {"models:/models:ro", requests} <= set(SERVICES["server"]["volumes"])
    assert {"models:/models", requests} <= set(SERVICES["trainer"]["volumes"])


@pytest.mark.parametrize(("recipe", "settings"), [("Dockerfile.server", Settings), ("Dockerfile.trainer", Environment)])
def test_no_folder_of_an_image_lies_where_its_user_may_not_write(
    recipe: str, settings: type[Settings] | type[Environment]
):
    """The folder that the program is started in belongs to root: each default that is relative to it is replaced.

    That of requests is there before it is mounted: in a read-only volume of models it could not be made.
    """
    environment = dict(part.split("=", 1) for value in values(recipe, "ENV") for part in shlex.split(value))
    relative = {f"LABELNEXT_{field.name.upper()}" for field in fields(settings) if isinstance(field.default, Path)}
    [made] = re.findall(r"install --directory --owner labelnext ([^&]*)", " ".join(values(recipe, "RUN")))
    roots = made.split()
    assert "LABELNEXT_MODELS" in relative
    for name in relative:
        assert any(Path(environment.get(name, "")).is_relative_to(root) for root in roots), name
    assert {"/models", f"/models/{REQUESTS_FOLDER}"} <= set(roots)


def test_server_and_trainer_of_a_host_share_features():
    """What one has computed the other need not; the head learns from what is known of unlabelled images."""
    [folder] = {SERVICES[program]["environment"]["LABELNEXT_CACHE_DIR"] for program in ("server", "trainer", "watch")}
    assert all(f"features:{folder}" in SERVICES[program]["volumes"] for program in ("server", "trainer", "watch"))


def test_what_browsers_call_label_studio_is_known_to_all():
    """It stands in references to local files, and its name within the composition means nothing outside."""
    for program in ("server", "trainer", "watch"):
        public = SERVICES[program]["environment"]["LABELNEXT_LABEL_STUDIO_PUBLIC_URL"]
        assert public == SERVICES["label-studio"]["environment"]["LABEL_STUDIO_HOST"]


def test_servers_can_be_scaled_behind_the_proxy():
    """The proxy alone has a port of the host's; it and the trainer find the servers by name and port of the service."""
    assert "ports" not in SERVICES["server"]
    assert SERVICES["proxy"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert f"presetenv LABELNEXT_PROXY_BIND :{PORT}" in (HAPROXY / "haproxy.cfg").read_text()
    servers = (HAPROXY / "docker.cfg").read_text()
    assert re.search(rf"server-template \w+ \d+ server:{PORT} resolvers docker", servers)
    assert SERVICES["trainer"]["environment"]["LABELNEXT_SERVER"] == f"http://server:{PORT}"


def test_the_proxy_has_its_configuration():
    [(source, target, mode)] = [volume.split(":") for volume in SERVICES["proxy"]["volumes"]]
    assert mode == "ro"
    found = [Path(argument) for argument in SERVICES["proxy"]["command"] if argument.startswith("/")]
    assert found == [Path(target) / "haproxy.cfg", Path(target) / "docker.cfg"]
    assert all((CHECKOUT / source / path.name).exists() for path in found)


def test_the_proxy_waits_longer_than_servers_take():
    """It gives up after a server's deadline and before Label Studio does, and stops as slowly as the servers."""
    [seconds] = re.findall(r"timeout server (\d+)s", (HAPROXY / "haproxy.cfg").read_text())
    patience = SERVICES["label-studio"]["environment"]["ML_TIMEOUT_PREDICT"]
    assert Settings().deadline_s < int(seconds) < int(patience)
    assert SERVICES["proxy"]["stop_grace_period"] == SERVICES["server"]["stop_grace_period"]


def test_the_trainer_runs_only_when_asked():
    assert SERVICES["trainer"]["profiles"] == ["train"]


def test_the_gpu_file_changes_services_that_there_are():
    gpu = yaml.safe_load((CHECKOUT / "compose.gpu.yaml").read_text(encoding="utf-8"))
    assert set(gpu["services"]) <= set(SERVICES)
