"""Writes bills of materials in CycloneDX's JSON, one per image: python -m deploy.images.sbom [FOLDER].

A bill lists what is installed in the image, Debian's packages included. Where the image was not built, it lists what is
in the environment that comes closest, and says so. Runs with cyclonedx-bom, from requirements/audit.txt.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from email.parser import Parser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deploy.images.__main__ import SERVER, TRAINER
from deploy.images.engine import CHECKOUT, EngineError, find_engine

FOLDER = CHECKOUT / ".cache" / "sbom"

# What else holds an image's packages. The trainer's has the developers' tools beside them.
_ENVIRONMENTS = {SERVER: ".venv-server", TRAINER: ".venv"}
_DPKG_STATUS = "var/lib/dpkg/status"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the bills; return the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    folder = Path(given[0]) if given else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for tag in _ENVIRONMENTS:
        target = folder / f"{tag}.cdx.json"
        try:
            bill, source = _bill(tag)
        except (EngineError, OSError, subprocess.CalledProcessError) as err:
            print(f"sbom: {tag}: {err}", file=sys.stderr)
            return 1
        bill["metadata"]["component"] = {"bom-ref": tag, "type": "container", "name": tag, "version": version}
        target.write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
        print(f"{target}: {len(bill['components'])} components of {source}")
    return 0


def _bill(tag: str) -> tuple[Any, str]:
    """Return the bill for an image, and of what it is."""
    try:
        engine = find_engine()
        size = engine.size(tag)
    except EngineError:
        size = None
    if size is None:
        return _python_packages(CHECKOUT / _ENVIRONMENTS[tag]), f"{_ENVIRONMENTS[tag]}, since the image was not built"
    with engine.files(tag) as root:
        bill = of_image(root)
    return bill, "the image"


def of_image(root: Path) -> Any:
    """Return the bill for the image whose files lie in a folder.

    Raises:
        CalledProcessError: if the image has no Python, or its packages cannot be read.
    """
    asking = ["chroot", str(root), "/usr/local/bin/python", "-c", "import json, sys; print(json.dumps(sys.path))"]
    paths = json.loads(subprocess.run(asking, check=True, capture_output=True).stdout)
    with tempfile.TemporaryDirectory() as folder:
        # cyclonedx-py asks an interpreter for its path; this one answers with the image's, as seen from here.
        answer = Path(folder) / "path.json"
        answer.write_text(json.dumps([f"{root}{path}" for path in paths if path]), encoding="utf-8")
        interpreter = Path(folder) / "python"
        interpreter.write_text(f"#!/bin/sh\nexec cat {answer}\n", encoding="utf-8")
        interpreter.chmod(0o700)
        bill = _python_packages(interpreter)
    bill["components"] += debian_packages((root / _DPKG_STATUS).read_text(encoding="utf-8"))
    return bill


def debian_packages(status: str) -> Iterator[dict[str, str]]:
    """Yield dpkg's installed packages, from the text of its status file, as components."""
    for paragraph in status.split("\n\n"):
        fields = Parser().parsestr(paragraph, headersonly=True)
        if fields["Status"] == "install ok installed":
            name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
            purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}"
            yield {"bom-ref": purl, "type": "library", "name": name, "version": version, "purl": purl}


def _python_packages(python: Path) -> Any:
    """Return the bill for what an interpreter can import, with dependencies and licences."""
    tool = str(CHECKOUT / ".venv-audit" / "bin" / "cyclonedx-py")
    command = [tool, "environment", "--output-reproducible", str(python)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


if __name__ == "__main__":
    sys.exit(main())
