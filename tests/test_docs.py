"""README and docs against the code: settings, commands, links and files that they name are real ones."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torchvision.models import get_model_weights

from contract.settings import PREFIX, SharedSettings, describe, written
from server.settings import Settings
from trainer.__main__ import read
from trainer.settings import Environment, Training

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
README = PAGES["README.md"]


def found(pattern, pages=PAGES):
    """What a pattern finds, with the page it is on."""
    return sorted({(page, text) for page in pages for text in re.findall(pattern, PAGES[page])})


def commands(page):
    """The lines of a page's code blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGES[page], re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def anchors(text):
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"(?m)^#+ (.+)$", text)}


@pytest.mark.parametrize(("page", "link"), found(r"\]\(((?!http)[^)]+)\)"))
def test_links_lead_somewhere(page, link):
    """Files and pictures are there, and headings too."""
    file, _, fragment = link.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists()
    assert not fragment or fragment in anchors(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("page", "path"),
    found(
        r"`((?:contract|server|trainer|deploy|requirements|tests)/[\w./-]+)`",
        ["README.md", "docs/architecture.md", "docs/operations.md"],
    ),
)
def test_files_that_are_named_exist(page, path):
    """Each path in the checkout is one."""
    assert (ROOT / path).exists()


@pytest.mark.parametrize("command", [line for page in PAGES for line in commands(page) if "-m trainer" in line])
def test_trainer_commands_parse(command):
    """Each is one that the trainer accepts."""
    words = shlex.split(command, comments=True)
    read(words[words.index("trainer") + 1 :])


def test_a_machine_without_internet_is_told_which_file_it_needs():
    """Where a project begins to be used, and it is the one that a training would have downloaded."""
    url = get_model_weights(Training().backbone).IMAGENET1K_V1.url
    [begin] = re.findall(r"## Use it on your project\n(.*?)\n### ", README, re.DOTALL)
    assert url in begin
    assert f"--weights {url.rpartition('/')[2]}" in begin


@pytest.mark.parametrize("target", [text for _, text in found(r"make ([a-z]+)\b(?=`|\s+#| [A-Z]+=)", ["README.md"])])
def test_make_targets_exist(target):
    """Each target that the README names is in the Makefile."""
    assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_the_two_commands_are_shown():
    """A newcomer finds `make demo` and `make test` in a code block."""
    assert {"make demo", "make test"} <= {command.partition("#")[0].strip() for command in commands("README.md")}


def table(kind, *, without):
    """The rows of a table of settings, as the class declares them."""
    defaults = {name: written(info.default) for name, info in kind.__pydantic_fields__.items() if name not in without}
    return "\n".join(
        f"| `{PREFIX}{name.upper()}` | {f'`{default}`' if default else 'not set'} | {describe(kind, name)} |"
        for name, default in defaults.items()
    )


@pytest.mark.parametrize(
    ("title", "kind"), [("Both", SharedSettings), ("Server", Settings), ("Trainer", Environment)], ids=str
)
def test_every_setting_is_described_with_its_default(title, kind):
    """In the order of the declarations, and no other is. Where this fails, the declaration is right."""
    section = re.search(rf"(?ms)^## {title}\n(.*?)(?=^## |\Z)", PAGES["docs/settings.md"])[1]
    shared = () if kind is SharedSettings else SharedSettings.__pydantic_fields__
    assert "\n".join(re.findall(r"(?m)^\| `.*", section)) == table(kind, without=shared)


@pytest.mark.parametrize("kind", [Settings, Environment])
def test_secrets_are_called_secrets(kind):
    """What logs mask is what the table says to keep."""
    masked = {name for name, info in kind.__pydantic_fields__.items() if not info.repr}
    assert masked == {name for name in kind.__pydantic_fields__ if describe(kind, name).endswith("Secret.")}
