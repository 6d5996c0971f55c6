"""docs/settings.md against the declarations: each setting with its default and meaning, no other, in their order."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from contract.settings import PREFIX, SharedSettings, describe, written
from server.settings import Settings
from trainer.settings import Environment

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
SHARED = {item.name for item in fields(SharedSettings)}


def table(kind, *, without=frozenset()):
    """The rows of a table, as the class declares them."""
    defaults = {name: written(info.default) for name, info in kind.__pydantic_fields__.items() if name not in without}
    return "\n".join(
        f"| `{PREFIX}{name.upper()}` | {f'`{default}`' if default else 'not set'} | {describe(kind, name)} |"
        for name, default in defaults.items()
    )


@pytest.mark.parametrize(
    ("title", "kind", "without"),
    [("Both", SharedSettings, set()), ("Server", Settings, SHARED), ("Trainer", Environment, SHARED)],
    ids=["both", "server", "trainer"],
)
def test_every_setting_is_described_with_its_default(title, kind, without):
    """Where this fails, the declaration is right."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)[1]
    assert "\n".join(re.findall(r"^\| `.*", section, re.MULTILINE)) == table(kind, without=without)


def test_secrets_are_called_secrets():
    """What logs mask is what the table says to keep."""
    masked = {item.name for item in fields(Settings) if not item.repr}
    assert masked == {item.name for item in fields(Settings) if describe(Settings, item.name).endswith("Secret.")}
    assert {item.name for item in fields(Environment) if not item.repr} == masked
