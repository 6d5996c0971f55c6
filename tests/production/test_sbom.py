"""The bills of materials of the images, or of the environments if the images were not built."""

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

# Direct requirements of the server: click, flask, gunicorn, idna, numpy, onnx, pillow, prometheus-client, pydantic,
# urllib3 and a runtime.
MAX_DIRECT = 11


def test_bills_list_every_direct_requirement(tmp_path: Path):
    """With its pinned version and a package URL. The server has few requirements, and not torch."""
    if not (CHECKOUT / ".venv-audit/bin/syft").exists():
        pytest.skip("no .venv-audit; `make sbom` creates it")
    command = [sys.executable, "-m", "deploy.images.sbom", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for tag, file in ((SERVER, "server-cpu.txt"), (TRAINER, "trainer.txt")):
        bill = json.loads((tmp_path / f"{tag}.cdx.json").read_text())
        listed = {(_normal(part["name"]), part["version"]) for part in bill["components"]}
        assert set(_direct(file)) - listed == set()
        subject = bill["metadata"]["component"]
        assert (bill["bomFormat"], subject["name"]) == ("CycloneDX", tag)
        assert [part for part in bill["components"] if part["type"] == "library" and not part.get("purl")] == []
        references = [part["bom-ref"] for part in bill["components"]]
        assert len(references) == len(set(references))
        assert {entry["ref"] for entry in bill["dependencies"]} <= {*references, subject["bom-ref"]}
        if tag == SERVER:
            assert [name for name, _ in listed if re.match(r"torch|nvidia|baal", name)] == []
    assert len(_direct("server-cpu.txt")) <= MAX_DIRECT


def _direct(file: str) -> list[tuple[str, str]]:
    """Return the names and versions pinned in a requirements file, and in those that it includes."""
    pinned = []
    for line in Path(CHECKOUT / "requirements" / file).read_text().splitlines():
        if line.startswith("-r "):
            pinned += _direct(line.split()[1])
        elif line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pinned.append((_normal(name.partition("[")[0]), version))
    return pinned


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
