"""Static checks of the Dockerfiles and compose.yaml, without a container engine."""

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
    """Return the arguments of each occurrence of an instruction."""
    text = re.sub(r"^#.*\n", "", (CHECKOUT / recipe).read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.partition(" ") for line in text.replace("\\\n", " ").splitlines()]
    return [value.strip() for name, _, value in lines if name == instruction]


[PORT] = values("Dockerfile.server", "EXPOSE")


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_runs_one_command_as_its_own_user(recipe: str):
    """On slim Python, and without a shell that would not pass on SIGTERM."""
    assert values(recipe, "FROM") == ["python:${PYTHON}-slim"]
    assert values(recipe, "USER") == ["labelnext"]
    commands = [value for name in ("CMD", "ENTRYPOINT") for value in values(recipe, name)]
    assert commands
    assert all(isinstance(json.loads(command), list) for command in commands)


def test_only_the_server_has_a_health_check():
    [check] = values("Dockerfile.server", "HEALTHCHECK")
    program = json.loads(check[check.index("[") :])[2]
    compile(program, "HEALTHCHECK", "exec")
    assert f":{PORT}/health/live" in program
    assert values("Dockerfile.trainer", "HEALTHCHECK") == ["NONE"]


@pytest.mark.parametrize("variant", ["gpu", "cpu"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_copies_existing_files_and_only_its_packages(recipe: str, variant: str):
    """Sources of COPY exist, pass .dockerignore, and include only requirements that are also copied."""
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


def test_dockerignore_excludes_no_data_files_of_packages():
    """Such as the templates of pages and reports."""
    patterns = [line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#!"]
    assert patterns == ["*", "**/__pycache__"]


def test_the_composition_runs_the_tested_label_studio():
    """With private addresses, such as ours, allowed, and with local files."""
    pinned = re.search(r"label-studio==(\S+)", (CHECKOUT / "requirements/label-studio.txt").read_text())
    studio = SERVICES["label-studio"]
    environment = studio["environment"]
    assert pinned
    assert studio["image"].endswith(f":{pinned[1]}")
    assert environment["ML_BLOCK_LOCAL_IP"] == environment["SSRF_PROTECTION_ENABLED"] == "false"
    assert environment["LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED"] == "true"
    root = environment["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"]
    assert [volume for volume in studio["volumes"] if volume.endswith(f":{root}:ro")]


def test_server_and_trainer_share_models_and_training_requests():
    """Models are read-only for the server, except the folder of requests."""
    requests = f"requests:/models/{REQUESTS_FOLDER}"
    assert {"models:/models:ro", requests} <= set(SERVICES["server"]["volumes"])
    assert {"models:/models", requests} <= set(SERVICES["trainer"]["volumes"])


@pytest.mark.parametrize(("recipe", "settings"), [("Dockerfile.server", Settings), ("Dockerfile.trainer", Environment)])
def test_the_user_of_an_image_may_write_to_its_folders(recipe: str, settings: type[Settings] | type[Environment]):
    """Relative default paths are replaced, because the working directory belongs to root.

    The folder of requests exists in the image, because it could not be created in a read-only volume of models.
    """
    environment = dict(part.split("=", 1) for value in values(recipe, "ENV") for part in shlex.split(value))
    relative = {f"LABELNEXT_{field.name.upper()}" for field in fields(settings) if isinstance(field.default, Path)}
    [folders] = re.findall(r"install --directory --owner labelnext ([^&]*)", " ".join(values(recipe, "RUN")))
    roots = folders.split()
    assert "LABELNEXT_MODELS" in relative
    for name in relative:
        assert any(Path(environment.get(name, "")).is_relative_to(root) for root in roots), name
    assert {"/models", f"/models/{REQUESTS_FOLDER}"} <= set(roots)


def test_server_and_trainer_share_a_feature_store():
    [folder] = {SERVICES[program]["environment"]["LABELNEXT_CACHE_DIR"] for program in ("server", "trainer", "watch")}
    assert all(f"features:{folder}" in SERVICES[program]["volumes"] for program in ("server", "trainer", "watch"))


def test_server_and_trainer_know_the_public_url_of_label_studio():
    """References to local files contain it."""
    for program in ("server", "trainer", "watch"):
        public = SERVICES[program]["environment"]["LABELNEXT_LABEL_STUDIO_PUBLIC_URL"]
        assert public == SERVICES["label-studio"]["environment"]["LABEL_STUDIO_HOST"]


def test_servers_can_be_scaled_behind_the_proxy():
    """Only the proxy publishes a port; proxy and trainer find servers by the service's name and port."""
    assert "ports" not in SERVICES["server"]
    assert SERVICES["proxy"]["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert f"presetenv LABELNEXT_PROXY_BIND :{PORT}" in (HAPROXY / "haproxy.cfg").read_text()
    servers = (HAPROXY / "docker.cfg").read_text()
    assert re.search(rf"server-template \w+ \d+ server:{PORT} resolvers docker", servers)
    assert SERVICES["trainer"]["environment"]["LABELNEXT_SERVER"] == f"http://server:{PORT}"


def test_the_proxy_has_its_configuration():
    [(source, target, mode)] = [volume.split(":") for volume in SERVICES["proxy"]["volumes"]]
    assert mode == "ro"
    configs = [Path(argument) for argument in SERVICES["proxy"]["command"] if argument.startswith("/")]
    assert configs == [Path(target) / "haproxy.cfg", Path(target) / "docker.cfg"]
    assert all((CHECKOUT / source / path.name).exists() for path in configs)


def test_the_proxy_times_out_after_servers_and_before_label_studio():
    """Its grace period is that of the servers."""
    [seconds] = re.findall(r"timeout server (\d+)s", (HAPROXY / "haproxy.cfg").read_text())
    timeout = SERVICES["label-studio"]["environment"]["ML_TIMEOUT_PREDICT"]
    assert Settings().deadline_s < int(seconds) < int(timeout)
    assert SERVICES["proxy"]["stop_grace_period"] == SERVICES["server"]["stop_grace_period"]


def test_the_trainer_runs_only_with_its_profile():
    assert SERVICES["trainer"]["profiles"] == ["train"]


def test_the_gpu_file_changes_existing_services():
    gpu = yaml.safe_load((CHECKOUT / "compose.gpu.yaml").read_text(encoding="utf-8"))
    assert set(gpu["services"]) <= set(SERVICES)
