"""README and docs against the code: settings, commands, links and files that they name are real ones."""

import re
import shlex
from pathlib import Path
from posixpath import dirname, join, normpath

import pytest
from torchvision.models import get_model_weights

import server.__main__
import trainer.__main__
from contract.commands import parse
from contract.settings import field_docstring
from deploy import settings_page
from deploy.settings_page import option_rows
from server.settings import Settings
from trainer.settings import Environment, Training

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "models/README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
README = PAGES["README.md"]
COMMANDS = {"trainer": trainer.__main__.COMMANDS, "server": server.__main__.COMMANDS}


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
    file, _, fragment = link.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists()
    assert not fragment or fragment in anchors(path.read_text(encoding="utf-8"))


def leads_to(page):
    """The pages that a page links to."""
    links = {link.partition("#")[0] for link in re.findall(r"\]\(((?!http)[^)]+)\)", PAGES[page])}
    return {normpath(join(dirname(page), link)) for link in links} & PAGES.keys()


def test_the_readme_is_short_and_shows_the_two_commands():
    assert len(README.split()) <= 1200
    assert {"make demo", "make test"} <= {command.partition("#")[0].strip() for command in commands("README.md")}


def test_every_page_is_within_two_clicks_of_the_readme():
    """So are the settings, metrics, alerts and figures on them."""
    once = leads_to("README.md")
    assert {"README.md"} | once | {target for page in once for target in leads_to(page)} == PAGES.keys()


def test_every_decision_is_listed_under_its_title():
    titles = {page: text.splitlines()[0].removeprefix("# ") for page, text in PAGES.items() if "decisions/0" in page}
    listed = re.findall(r"(?m)^- \[(.+)\]\((.+)\)$", PAGES["docs/decisions/index.md"])
    assert [(f"docs/decisions/{file}", title) for title, file in listed] == list(titles.items())


@pytest.mark.parametrize(
    ("page", "path"), found(r"`((?:contract|server|trainer|deploy|requirements|tests|bench)/[\w./-]+)`")
)
def test_files_that_are_named_exist(page, path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize(
    "line",
    sorted(
        {
            line.partition("#")[0].strip()
            for page in PAGES
            for line in commands(page)
            if re.search(r"-m (trainer|server) [^.]", line)
        }
    ),
)
def test_commands_parse(line):
    words = shlex.split(line)
    program, *rest = words[words.index("-m") + 1 :]
    command, _ = parse(program, COMMANDS[program], rest, about="")
    assert command in COMMANDS[program].values()


def options(declarations):
    """The names of options; one that is on by default has two."""
    return {name for each in declarations for name in each.usage.split()[0].split("/")}


@pytest.mark.parametrize(("page", "usage"), found(r"`(?:python -m )?((?:trainer|server) [a-z-]+ [^`]*--[^`]*)`"))
def test_options_are_the_command_s(page, usage):
    """Where a sentence shows how a command is called, its --help lists them."""
    program, name, *rest = usage.split()
    command = COMMANDS[program][name]
    kinds = command.groups.values()
    known = options(each for kind in kinds for each in option_rows(kind, excluded=command.excluded))
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", " ".join(rest))) <= known | {"--help"}


@pytest.mark.parametrize(("page", "option"), found(r"`(--[a-z][a-z-]*)"))
def test_options_that_stand_alone_are_ones(page, option):
    """Of some command, of the GPU's bench or of Docker's."""
    kinds = [kind for each in COMMANDS.values() for command in each.values() for kind in command.groups.values()]
    known = options(each for kind in kinds for each in option_rows(kind))
    assert option in known | {"--parts", "--build-arg", "--profile"}


def test_a_machine_without_internet_is_told_which_file_it_needs():
    """Where a project begins to be used, and it is the one that a training would have downloaded."""
    url = get_model_weights(Training().backbone).IMAGENET1K_V1.url
    [begin] = re.findall(r"## Your own project\n(.*?)\n## ", PAGES["docs/guide.md"], re.DOTALL)
    assert url in begin
    assert f"--weights {url.rpartition('/')[2]}" in begin


@pytest.mark.parametrize("target", sorted({text for _, text in found(r"make ([a-z-]+)\b(?=`|\s+#| [A-Z]+=)")}))
def test_make_targets_exist(target):
    assert re.search(rf"(?m)^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"))


def test_every_setting_and_option_is_described():
    """With its default, in the order of the declarations, and no other is: `make fix` writes what is missing here."""
    assert PAGES["docs/settings.md"] == settings_page.render(PAGES["docs/settings.md"])


@pytest.mark.parametrize("kind", [Settings, Environment])
def test_secrets_are_called_secrets(kind):
    """What logs mask is what the table says to keep."""
    masked = {name for name, info in kind.__pydantic_fields__.items() if not info.repr}
    assert masked == {name for name in kind.__pydantic_fields__ if field_docstring(kind, name).endswith("Secret.")}
