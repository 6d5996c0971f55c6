"""The documentation as a site: `make docs` finds no fault, and what it builds needs nothing from elsewhere."""

import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from demo.product import CHECKOUT

FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


class References(HTMLParser):
    """What a browser fetches to show a page, and where its links lead."""

    def __init__(self, html):
        super().__init__()
        self.fetched, self.links = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if (found := given.get(FETCHED.get(tag, ""))) and given.get("rel") != "canonical":
            self.fetched.append(found)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built by the same command as that of `make docs`, which makes its environment."""
    python = CHECKOUT / ".venv-docs" / "bin" / "python"
    if not python.exists():
        pytest.skip("needs .venv-docs, which make environments makes")
    folder = tmp_path_factory.mktemp("site")
    command = [python, "-m", "mkdocs", "--quiet", "build", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    return folder


def test_every_page_is_there(site):
    pages = {path.relative_to(CHECKOUT / "docs").with_suffix(".html") for path in (CHECKOUT / "docs").rglob("*.md")}
    there = {path.relative_to(site) for path in site.rglob("*.html")}
    assert {Path("index.html"), Path("changelog.html"), Path("models.html")} | pages <= there


def test_nothing_is_fetched_from_elsewhere(site):
    """Neither scripts nor fonts nor pictures: it is read without internet."""
    pages = [path.read_text(encoding="utf-8") for path in site.glob("*.html")]
    fetched = {each for page in pages for each in References(page).fetched}
    assert {each for each in fetched if each.startswith(("http:", "https:", "//"))} == set()
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"url\([\"']?(?:https?:)?//[^)]*\)|@import", styles) == []


def test_links_lead_to_files_of_the_site(site):
    """Also those to results of benches, alerts and reports, which lie outside of docs/."""
    for path in site.glob("**/*.html"):
        if "bench" in path.relative_to(site).parts or path.name == "404.html":
            continue  # a study's own report; the page of a site that is served
        for link in References(path.read_text(encoding="utf-8")).links:
            if not re.match(r"[a-z]+:|#", link):
                assert (path.parent / link.partition("#")[0]).resolve().exists(), f"{path.name}: {link}"


def test_the_search_finds_a_setting_on_pages_opened_from_the_disk(site, browser):
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.get_by_placeholder("Search").fill("LABELNEXT_POLL_S")
    page.locator(".md-search-result__link").first.click()
    page.wait_for_url("**/settings.html*")
