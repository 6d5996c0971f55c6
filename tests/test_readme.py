"""The README against the code: its settings, commands and links are the real ones."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torchvision.models import get_model_weights

from trainer.__main__ import read
from trainer.settings import Training

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line and not line.startswith(("export", "#"))
]


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m trainer" in c])
def test_trainer_commands_parse(command):
    """Each trainer command in the README is one that the trainer accepts."""
    words = shlex.split(command, comments=True)
    read(words[words.index("trainer") + 1 :])


def test_a_machine_without_internet_is_told_which_file_it_needs():
    """Where a project begins to be used, and it is the one that a training would have downloaded."""
    url = get_model_weights(Training().architecture).IMAGENET1K_V1.url
    [begin] = re.findall(r"## Use it on your project\n(.*?)\n### ", README, re.DOTALL)
    assert url in begin
    assert f"--weights {url.rpartition('/')[2]}" in begin


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z]+)\b(?=`|\s+#| [A-Z]+=)", README))))
def test_make_targets_exist(target):
    """Each target that the README names is in the Makefile."""
    assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_links_lead_somewhere(link):
    """Each relative link and picture is in the checkout."""
    assert (ROOT / link).exists()


def test_the_two_commands_are_shown():
    """A newcomer finds `make demo` and `make test` in a code block."""
    assert {"make demo", "make test"} <= {command.partition("#")[0].strip() for command in COMMANDS}
