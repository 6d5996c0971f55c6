"""The bills of materials, of the images where they were built and else of the environments."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.images.__main__ import SERVER, TRAINER
from deploy.images.engine import CHECKOUT

pytestmark = pytest.mark.rare

# What the server is made of: click, flask, gunicorn, idna, numpy, onnx, pillow, prometheus-client, pydantic, urllib3
# and a runtime.
MOST_DIRECT = 11


@pytest.fixture(scope="module")
def bills(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The bills that `python -m deploy.images.sbom` writes, by image."""
    if not (CHECKOUT / ".venv-audit/bin/syft").exists():
        pytest.skip("no .venv-audit; `make sbom` makes it")
    folder = tmp_path_factory.mktemp("sbom")
    done = subprocess.run(
        [sys.executable, "-m", "deploy.images.sbom", folder],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return {tag: json.loads((folder / f"{tag}.cdx.json").read_text()) for tag in (SERVER, TRAINER)}


@pytest.mark.parametrize(("tag", "file"), [(SERVER, "server-cpu.txt"), (TRAINER, "trainer.txt")])
def test_a_bill_lists_all_that_was_asked_for(bills: dict[str, dict], tag: str, file: str):
    """Every direct requirement is there in its pinned version, with a package URL."""
    listed = {(_normal(part["name"]), part["version"]) for part in bills[tag]["components"]}
    assert set(_direct(file)) - listed == set()
    assert bills[tag]["bomFormat"] == "CycloneDX"
    assert bills[tag]["metadata"]["component"]["name"] == tag
    packages = [part for part in bills[tag]["components"] if part["type"] == "library"]
    assert [part["name"] for part in packages if not part.get("purl")] == []


def test_references_in_a_bill_are_unique(bills: dict[str, dict]):
    """CycloneDX has it so: dependencies are named by them."""
    for bill in bills.values():
        references = [part["bom-ref"] for part in bill["components"]]
        assert len(references) == len(set(references))
        assert {entry["ref"] for entry in bill["dependencies"]} <= {
            *references,
            bill["metadata"]["component"]["bom-ref"],
        }


def test_the_servers_bill_is_short(bills: dict[str, dict]):
    """No torch, nothing of CUDA in the CPU variant, and few direct requirements."""
    names = {_normal(part["name"]) for part in bills[SERVER]["components"]}
    assert {name for name in names if re.match(r"torch|nvidia|baal", name)} == set()
    assert len(_direct("server-cpu.txt")) <= MOST_DIRECT


def _direct(file: str) -> list[tuple[str, str]]:
    """Return names and versions that a requirements file pins, those of the files that it names included."""
    found = []
    for line in Path(CHECKOUT / "requirements" / file).read_text().splitlines():
        if line.startswith("-r "):
            found += _direct(line.split()[1])
        elif line and not line.startswith("#"):
            name, _, version = line.partition("==")
            found.append((_normal(name.partition("[")[0]), version))
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
