"""A mkdocs hook that adds pages and linked files from outside docs/ to the site, and rewrites links to them."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_CHECKOUT: Final = Path(__file__).resolve().parents[1]
_PAGES: Final = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "models/README.md": "models.md"}
_SEARCH_BOOST: Final = {"settings.md": 4}
"""The weight of pages in search results, if it is not 1."""
_LINK: Final = re.compile(r"(?<=\]\()(?!https?://|#)([^)#\s]+)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages, and the files outside docs/ that any page links to."""
    for source, page in _PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(_CHECKOUT / source)))
    for file in list(files.documentation_pages()):
        for target in _external_files(file):
            if target not in files.src_uris:
                files.append(File.generated(config, target, abs_src_path=str(_CHECKOUT / target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links from paths in the repository to paths in the site, and set the search weight of the page."""
    page.meta["search"] = {"boost": _SEARCH_BOOST.get(page.file.src_uri, 1)}
    folder = posixpath.dirname(page.file.src_uri)
    return _LINK.sub(lambda link: posixpath.relpath(_in_site(_resolve(page.file, link[1])), folder or "."), markdown)


def _external_files(file: File) -> Iterator[str]:
    """Yield the files outside docs/ that a page links to, except pages of the site."""
    for link in _LINK.findall(file.content_string):
        target = _resolve(file, link)
        if not target.startswith("docs/") and target not in _PAGES and (_CHECKOUT / target).is_file():
            yield target


def _resolve(file: File, link: str) -> str:
    """Return the path in the repository that a page's link points to."""
    source = next((source for source, page in _PAGES.items() if page == file.src_uri), f"docs/{file.src_uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _in_site(path: str) -> str:
    return _PAGES.get(path, path.removeprefix("docs/"))
