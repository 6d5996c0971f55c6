"""How pip reaches its packages on this machine, so that it reaches them the same way while an image is built.

What is found goes into a build as a secret, which leaves nothing behind in the image.
"""

import ast
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

# An empty folder of every image; what is mounted within it makes no new one.
MOUNTED_AT = Path("/mnt")


@dataclass(frozen=True, slots=True)
class PipConfig:
    """A configuration file for pip within a build."""

    text: str
    sources: Mapping[str, Path]
    """Files and folders of this machine that the text relies on, by their name below `MOUNTED_AT`."""
    portable: str
    """The same without the settings that rely on such: for builders that can mount nothing."""


def pip_config() -> PipConfig:
    """Return this machine's settings of pip: those of its files and of PIP_ variables, which take precedence.

    There are none where this Python has no pip.
    """
    command = [sys.executable, "-m", "pip", "config", "list"]
    return translate(subprocess.run(command, check=False, capture_output=True, text=True).stdout)


def translate(listing: str) -> PipConfig:
    """Return what `pip config list` printed as a file for another root, in which local paths stand elsewhere."""
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in found:
            found[section][key] = ast.literal_eval(value)
    sources: dict[str, Path] = {}
    lines, portable = ["[global]"], ["[global]"]
    for key, value in {**found["global"], **found["install"], **found[":env:"]}.items():
        moved = " ".join(_moved(word, sources) for word in value.split())
        lines.append(f"{key} = {moved}")
        if moved == " ".join(value.split()):
            portable.append(lines[-1])
    return PipConfig("\n".join(lines) + "\n", sources, "\n".join(portable) + "\n")


def _moved(word: str, sources: dict[str, Path]) -> str:
    """Return a word of a setting, with `MOUNTED_AT` in it if it names something on this disk, which joins `sources`."""
    is_url = word.startswith("file://")
    path = Path(url2pathname(urlsplit(word).path) if is_url else word)
    if not path.is_absolute() or not path.exists():
        return word
    # The pages of an index name files beside it, not below it.
    source = path.parent if is_url else path
    known = {kept: name for name, kept in sources.items()}
    name = known.get(source, str(len(sources)))
    sources[name] = source
    return ("file://" if is_url else "") + str(MOUNTED_AT / name / path.relative_to(source))
