"""Parses pages of reports."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """A page's elements, text, links and tables; parsing fails if an element is not closed."""

    def __init__(self, path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.tables, self.rows = {}, []
        """Rows of cells by the table's id."""
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag == "table":
            self.rows = self.tables[dict(attrs).get("id")] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href", "xlink:href", "action", "data"}]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += " ".join(data.split())

    def table(self, name):
        """Return the rows of a table by first cell, without its tag."""
        return {re.sub("(default|minority)$", "", row[0]).strip(): row[1:] for row in self.tables[name]}

    @property
    def words(self):
        """The text with normalised spaces."""
        return " ".join(self.text.split())

    def assert_closed(self, *files):
        """Check that the page has no scripts and refers to nothing outside but these files."""
        assert "script" not in self.tags
        outside = {link for link in self.links if not link.startswith(("data:image/jpeg;base64,", "#"))}
        assert outside <= {*files}
        assert set(re.findall(r"url\((?!#)[^)]*\)", self.html)) == set()
        assert "<!DOCTYPE" not in self.html.partition("<html")[2]
