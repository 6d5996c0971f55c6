import re

import pytest

from deploy.images import __main__ as command
from deploy.images import engine
from deploy.images.engine import BASE, CHECKOUT, EngineError, find_engine


@pytest.mark.parametrize("recipe", ["Dockerfile.server", "Dockerfile.trainer"])
def test_the_base_image_is_that_of_the_dockerfile(recipe):
    text = (CHECKOUT / recipe).read_text()
    [version], [start] = (re.findall(rf"(?m)^{name}(\S+)$", text) for name in ("ARG PYTHON=", "FROM "))
    assert f"docker.io/library/{start.replace('${PYTHON}', version)}" == BASE


@pytest.mark.parametrize(("uid", "reason"), [(1000, "only root"), (0, "apt-get install podman")])
def test_without_a_container_engine_the_reason_is_printed(monkeypatch, capsys, uid, reason):
    """On one line, with status 0."""
    monkeypatch.setattr(engine.shutil, "which", lambda program: None)
    monkeypatch.setattr(engine.os, "getuid", lambda: uid)
    with pytest.raises(EngineError, match=reason):
        find_engine()
    assert command.main([]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("images: not built: no Docker daemon answers")
    assert reason in line
