"""Writes a software bill of materials (CycloneDX JSON) for each image: python -m deploy.images.sbom [FOLDER].

Lists the Python and Debian packages of the image or, if it has not been built, of the most similar environment of this
checkout, with syft (requirements/audit.txt).
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from deploy.images.__main__ import SERVER, TRAINER
from deploy.images.engine import CHECKOUT, EngineError, find_engine

FOLDER = CHECKOUT / ".cache" / "sbom"

# The environment most similar to each image; the trainer's also has development tools.
_ENVIRONMENTS = {SERVER: ".venv-server", TRAINER: ".venv"}
_CATALOGERS = "python-installed-package-cataloger,dpkg-db-cataloger"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write all bills of materials and return the exit status."""
    folder = Path(next(iter(sys.argv[1:] if arguments is None else arguments), FOLDER))
    folder.mkdir(parents=True, exist_ok=True)
    for tag in _ENVIRONMENTS:
        target = folder / f"{tag}.cdx.json"
        try:
            source = _write_bill(tag, target)
        except (EngineError, OSError, subprocess.CalledProcessError) as err:
            print(f"sbom: {tag}: {err}", file=sys.stderr)
            return 1
        components = json.loads(target.read_text(encoding="utf-8"))["components"]
        print(f"{target}: {len(components)} components of {source}")
    return 0


def _write_bill(tag: str, target: Path) -> str:
    """Write the bill of materials of an image, and return its source."""
    try:
        engine = find_engine()
        metadata = engine.inspect(tag)
    except EngineError:
        metadata = None
    if metadata is None:
        _syft(tag, f"dir:{(CHECKOUT / _ENVIRONMENTS[tag]).resolve()}", target)
        return f"{_ENVIRONMENTS[tag]}, because the image has not been built"
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "image.tar"
        engine.run("save", "--output", str(archive), tag)
        _syft(tag, f"docker-archive:{archive}", target)
    return "the image"


def _syft(tag: str, source: str, target: Path) -> None:
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    command = [str(CHECKOUT / ".venv-audit/bin/syft"), "scan", "--quiet", source, f"--output=cyclonedx-json={target}"]
    command += [f"--source-name={tag}", f"--source-version={version}", f"--override-default-catalogers={_CATALOGERS}"]
    subprocess.run(command, check=True, env={"SYFT_CHECK_FOR_APP_UPDATE": "false"})


if __name__ == "__main__":
    sys.exit(main())
