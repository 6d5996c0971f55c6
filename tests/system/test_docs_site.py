"""The site of `make docs`: it builds without warnings and works offline."""

import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from demo.product import CHECKOUT

FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


class References(HTMLParser):
    """The resources that a browser loads for a page, and the targets of its links."""

    def __init__(self, html):
        super().__init__()
        self.fetched, self.links = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if (url := attributes.get(FETCHED.get(tag, ""))) and attributes.get("rel") != "canonical":
            self.fetched.append(url)
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built by the command of `make docs`."""
    python = CHECKOUT / ".venv-docs" / "bin" / "python"
    if not python.exists():
        pytest.skip("needs .venv-docs; run make environments")
    folder = tmp_path_factory.mktemp("site")
    command = [python, "-m", "mkdocs", "--quiet", "build", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    return folder


def test_the_site_has_every_page(site):
    pages = {path.relative_to(CHECKOUT / "docs").with_suffix(".html") for path in (CHECKOUT / "docs").rglob("*.md")}
    built = {path.relative_to(site) for path in site.rglob("*.html")}
    assert {Path("index.html"), Path("changelog.html"), Path("models.html")} | pages <= built


def test_pages_fetch_nothing_from_the_internet(site):
    """Neither scripts nor fonts nor pictures."""
    pages = [path.read_text(encoding="utf-8") for path in site.glob("*.html")]
    fetched = {each for page in pages for each in References(page).fetched}
    assert {each for each in fetched if each.startswith(("http:", "https:", "//"))} == set()
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"url\([\"']?(?:https?:)?//[^)]*\)|@import", styles) == []


def test_links_have_existing_targets(site):
    """Also links to files outside docs/: benchmark results, alerts and reports."""
    for path in site.glob("**/*.html"):
        if "bench" in path.relative_to(site).parts or path.name == "404.html":
            continue  # reports of studies and the error page are not built from docs/
        for link in References(path.read_text(encoding="utf-8")).links:
            if not re.match(r"[a-z]+:|#", link):
                assert (path.parent / link.partition("#")[0]).resolve().exists(), f"{path.name}: {link}"


def test_the_search_works_on_pages_opened_from_disk(site, browser):
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.get_by_placeholder("Search").fill("LABELNEXT_POLL_S")
    page.locator(".md-search-result__link").first.click()
    page.wait_for_url("**/settings.html*")
