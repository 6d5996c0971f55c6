"""README and docs against the code: the settings, commands, links and files that they name exist."""

import re
import shlex
from functools import cache
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


def matches(pattern, pages=PAGES):
    """Return the matches of a pattern as pairs of page and text."""
    return sorted({(page, text) for page in pages for text in re.findall(pattern, PAGES[page])})


def commands(page):
    """Return the lines of a page's code blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGES[page], re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def anchors(text):
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"(?m)^#+ (.+)$", text)}


@pytest.mark.parametrize(("page", "link"), matches(r"\]\(((?!http)[^)]+)\)"))
def test_links_have_existing_targets(page, link):
    file, _, fragment = link.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists()
    assert not fragment or fragment in anchors(path.read_text(encoding="utf-8"))


def linked_pages(page):
    """Return the pages that a page links to."""
    links = {link.partition("#")[0] for link in re.findall(r"\]\(((?!http)[^)]+)\)", PAGES[page])}
    return {normpath(join(dirname(page), link)) for link in links} & PAGES.keys()


def test_the_readme_is_short_and_shows_the_two_commands():
    assert len(README.split()) <= 1200
    assert {"make demo", "make test"} <= {command.partition("#")[0].strip() for command in commands("README.md")}


def test_every_page_is_within_two_clicks_of_the_readme():
    first = linked_pages("README.md")
    assert {"README.md"} | first | {target for page in first for target in linked_pages(page)} == PAGES.keys()


def test_every_decision_is_listed_under_its_title():
    titles = {page: text.splitlines()[0].removeprefix("# ") for page, text in PAGES.items() if "decisions/0" in page}
    listed = re.findall(r"(?m)^- \[(.+)\]\((.+)\)$", PAGES["docs/decisions/index.md"])
    assert [(f"docs/decisions/{file}", title) for title, file in listed] == list(titles.items())


@pytest.mark.parametrize(
    ("page", "path"), matches(r"`((?:contract|server|trainer|deploy|requirements|tests|bench)/[\w./-]+)`")
)
def test_named_files_exist(page, path):
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
    """Return the names of options; an option that is on by default has two."""
    return {name for each in declarations for name in each.usage.split()[0].split("/")}


@pytest.mark.parametrize(("page", "usage"), matches(r"`(?:python -m )?((?:trainer|server) [a-z-]+ [^`]*--[^`]*)`"))
def test_options_of_a_command_exist(page, usage):
    """In commands within sentences; `test_commands_parse` checks code blocks."""
    program, name, *rest = usage.split()
    command = COMMANDS[program][name]
    kinds = command.groups.values()
    known = options(each for kind in kinds for each in option_rows(kind, excluded=command.excluded))
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", " ".join(rest))) <= known | {"--help"}


@pytest.mark.parametrize(("page", "option"), matches(r"`(--[a-z][a-z-]*)"))
def test_options_without_a_command_exist(page, option):
    """They are options of any command, of the GPU benchmark or of Docker."""
    kinds = [kind for each in COMMANDS.values() for command in each.values() for kind in command.groups.values()]
    known = options(each for kind in kinds for each in option_rows(kind))
    assert option in known | {"--parts", "--build-arg", "--profile"}


def test_the_guide_names_the_weights_for_a_machine_without_internet():
    """It is the file that training would download."""
    url = get_model_weights(Training().backbone).IMAGENET1K_V1.url
    [text] = re.findall(r"## Your own project\n(.*?)\n## ", PAGES["docs/guide.md"], re.DOTALL)
    assert url in text
    assert f"--weights {url.rpartition('/')[2]}" in text


@pytest.mark.parametrize("target", sorted({text for _, text in matches(r"make ([a-z-]+)\b(?=`|\s+#| [A-Z]+=)")}))
def test_make_targets_exist(target):
    assert re.search(rf"(?m)^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"))


def test_every_setting_and_option_is_described():
    """With its default and in the order of the declarations; `make fix` updates docs/settings.md."""
    assert PAGES["docs/settings.md"] == settings_page.render(PAGES["docs/settings.md"])


def troubleshooting_messages():
    """Return the messages in the left column of the troubleshooting page; they begin in lower case, unlike titles."""
    rows = re.findall(r"(?m)^\| ([^|]+) \|", PAGES["docs/troubleshooting.md"])
    return [text for row in rows for text in re.findall(r"\*([a-z0-9][^*]+)\*", row)]


@pytest.mark.parametrize("message", troubleshooting_messages())
def test_messages_in_troubleshooting_are_those_of_the_code(message):
    """Numbers stand for placeholders, and dots for any text."""
    pattern = re.sub(r"\d+", "{}", re.escape(message.removesuffix(" ..."))).replace(r"\.\.\.", ".*")
    assert re.search(pattern, source_texts())


@cache
def source_texts():
    """Return the sources of the product, with string literals joined and placeholders emptied."""
    paths = [path for package in ("contract", "trainer", "server") for path in sorted((ROOT / package).rglob("*.py"))]
    joined = re.sub(r'"\n\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in paths))
    return re.sub(r"\{[^{}]*\}", "{}", joined)


@pytest.mark.parametrize("kind", [Settings, Environment])
def test_settings_masked_in_logs_are_documented_as_secrets(kind):
    masked = {name for name, info in kind.__pydantic_fields__.items() if not info.repr}
    assert masked == {name for name in kind.__pydantic_fields__ if field_docstring(kind, name).endswith("Secret.")}
