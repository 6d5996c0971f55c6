import json
import re
import stat

import pytest

from deploy import audit
from deploy.audit import main

SAFE = {"dependencies": [{"name": "numpy", "version": "2.2.6", "vulns": []}], "fixes": []}
VULNERABLE = {
    "dependencies": [
        {"name": "numpy", "version": "2.2.6", "vulns": []},
        {"name": "onnxruntime", "skip_reason": "not found"},
        {"name": "jinja2", "version": "2.11.2", "vulns": [{"id": "CVE-2020-28493", "fix_versions": ["2.11.3"]}]},
    ],
    "fixes": [],
}


@pytest.fixture
def fake_pip_audit(monkeypatch, tmp_path):
    """Return a function that installs a fake pip-audit with these outputs for the canary and for all packages."""

    def install(canary, packages):
        for name, text in (("canary", canary), ("packages", packages)):
            (tmp_path / name).write_text(text if isinstance(text, str) else json.dumps(text))
        tool = tmp_path / "pip-audit"
        tool.write_text(
            f'#!/bin/sh\ncase "$*" in *canary.txt*) cat {tmp_path}/canary;; *) cat {tmp_path}/packages;; esac\n'
        )
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(audit, "_TOOL", (str(tool),))

    return install


@pytest.mark.parametrize(
    ("canary", "packages", "status", "message"),
    [
        *((output, SAFE, 0, "no vulnerability data reachable, skipped") for output in (SAFE, "", "no JSON")),
        (VULNERABLE, SAFE, 0, "no known vulnerabilities"),
        (VULNERABLE, VULNERABLE, 1, "jinja2 2.11.2: CVE-2020-28493 (fixed in 2.11.3)"),
    ],
)
def test_the_audit_fails_for_vulnerable_packages(fake_pip_audit, capsys, canary, packages, status, message):
    """It is skipped if the canary is not reported, because then no vulnerability data is reachable."""
    fake_pip_audit(canary, packages)
    assert main() == status
    captured = capsys.readouterr()
    assert message in (captured.err if status else captured.out)


def test_a_missing_report_is_an_error(fake_pip_audit):
    fake_pip_audit(VULNERABLE, "")
    with pytest.raises(audit.AuditError, match="no report"):
        main()


def test_all_installed_requirements_are_audited():
    """Those of the Dockerfiles, with extras, and those of the score pool."""
    installed = set()
    for recipe in ("Dockerfile.server", "Dockerfile.trainer"):
        text = (audit.CHECKOUT / recipe).read_text()
        for name in re.findall(r"requirements/([\w${}.-]+\.txt)", text):
            installed |= {name.replace("${VARIANT}", variant) for variant in ("cpu", "gpu")}
    # Both variants include server.txt.
    installed = {name for name in installed if "${" not in name} - {"server.txt"}
    assert set(audit.REQUIREMENTS) == {*installed, "score-pool.txt"}
