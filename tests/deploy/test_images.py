import re

import pytest

from deploy.images import __main__ as command
from deploy.images import base, engine
from deploy.images.confined import confined
from deploy.images.engine import CHECKOUT, EngineError, ImageConfig, find_engine


@pytest.mark.parametrize("recipe", ["Dockerfile.server", "Dockerfile.trainer"])
def test_the_base_is_the_recipes(recipe):
    """What is fetched, or made in its place, is what the Dockerfile starts from."""
    text = (CHECKOUT / recipe).read_text()
    version = re.search(r"^ARG PYTHON=(\S+)$", text, re.MULTILINE)
    start = re.search(r"^FROM (\S+)$", text, re.MULTILINE)
    assert version
    assert start
    assert f"docker.io/library/{start[1].replace('${PYTHON}', version[1])}" == base.BASE


@pytest.mark.parametrize(("uid", "reason"), [(1000, "root alone"), (0, "apt-get install buildah")])
def test_where_nothing_can_build_it_says_why_and_succeeds(monkeypatch, capsys, uid, reason):
    """Neither a daemon nor buildah: one line with the reason, and status 0."""
    monkeypatch.setattr(engine.shutil, "which", lambda program: None)
    monkeypatch.setattr(engine.os, "getuid", lambda: uid)
    with pytest.raises(EngineError, match=reason):
        find_engine()
    assert command.main([]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("images: not built: no Docker daemon answers")
    assert reason in line


def test_variables_replace_the_images(tmp_path):
    """A variable that is given comes once, with the value that is given; the image's others stay."""
    config = ImageConfig("labelnext", tmp_path, {"A": "1", "B": "2"}, ("program", "an argument"), ())
    arguments = confined(tmp_path, config, environment={"B": "3"}, mounts={tmp_path / "models": "/models"})
    assert arguments[-4:] == ["A=1", "B=3", "program", "an argument"]
    assert arguments[arguments.index("--") - 2 : arguments.index("--")] == [str(tmp_path / "models"), "/models"]
