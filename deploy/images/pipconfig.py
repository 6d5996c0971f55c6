"""This machine's pip configuration, translated for image builds, which get it as a secret."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

MOUNTED_AT = Path("/mnt")
"""A folder that exists in every image, so that mounts below it add no folders."""


@dataclass(frozen=True, slots=True)
class PipConfig:
    """A pip configuration file for a build."""

    text: str
    sources: Mapping[str, Path]
    """Local files and folders that the text refers to, by their name below `MOUNTED_AT`."""
    portable: str
    """The text without settings that refer to local files, for builders that cannot mount them."""


def pip_config() -> PipConfig:
    """Return the settings of pip's files and, with precedence, of PIP_ variables; empty if this Python has no pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    return translate(subprocess.run(command, check=False, capture_output=True, text=True).stdout)


def translate(listing: str) -> PipConfig:
    """Translate the output of `pip config list`: local paths become paths below `MOUNTED_AT`."""
    settings: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in settings:
            settings[section][key] = ast.literal_eval(value)
    sources: dict[str, Path] = {}
    lines, portable = ["[global]"], ["[global]"]
    for key, value in {**settings["global"], **settings["install"], **settings[":env:"]}.items():
        translated = " ".join(_translate_word(word, sources) for word in value.split())
        lines.append(f"{key} = {translated}")
        if translated == " ".join(value.split()):
            portable.append(lines[-1])
    return PipConfig("\n".join(lines) + "\n", sources, "\n".join(portable) + "\n")


def _translate_word(word: str, sources: dict[str, Path]) -> str:
    """Translate a word of a setting; a local path is added to `sources`."""
    is_url = word.startswith("file://")
    path = Path(url2pathname(urlsplit(word).path) if is_url else word)
    if not path.is_absolute() or not path.exists():
        return word
    # The pages of a package index link to files next to it, not below it.
    source = path.parent if is_url else path
    names = {mounted: name for name, mounted in sources.items()}
    name = names.get(source, str(len(sources)))
    sources[name] = source
    return ("file://" if is_url else "") + str(MOUNTED_AT / name / path.relative_to(source))
