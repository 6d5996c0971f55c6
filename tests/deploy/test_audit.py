import json
import re
import stat

import pytest

from deploy import audit
from deploy.audit import findings, main

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
def answer(monkeypatch, tmp_path):
    """Have a program in pip-audit's place print one thing of its canary and another of the rest."""

    def prepare(canary, rest):
        for name, text in (("canary", canary), ("rest", rest)):
            (tmp_path / name).write_text(text if isinstance(text, str) else json.dumps(text))
        tool = tmp_path / "pip-audit"
        tool.write_text(
            f'#!/bin/sh\ncase "$*" in *canary.txt*) cat {tmp_path}/canary;; *) cat {tmp_path}/rest;; esac\n'
        )
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(audit, "_TOOL", (str(tool),))

    return prepare


def test_findings_name_package_vulnerability_and_remedy():
    """Packages that are sound, or of which nothing is known, are not among them."""
    assert findings(VULNERABLE) == {"jinja2 2.11.2": "CVE-2020-28493 (mended in 2.11.3)"}
    assert findings(SAFE) == {}


@pytest.mark.parametrize("canary", [SAFE, "", "no JSON"])
def test_without_data_there_is_no_verdict(answer, capsys, canary):
    """Where not even the canary is found vulnerable, one line says so, and the check goes on."""
    answer(canary, SAFE)
    assert main() == 0
    assert capsys.readouterr().out == "pip-audit: no vulnerability data reachable, skipped\n"


def test_a_vulnerability_fails_the_check(answer, capsys):
    """What pip-audit finds is named, and the status is 1."""
    answer(VULNERABLE, VULNERABLE)
    assert main() == 1
    assert "jinja2 2.11.2: CVE-2020-28493" in capsys.readouterr().err


def test_sound_packages_pass(answer, capsys):
    """With data, and nothing found in it, the check says that."""
    answer(VULNERABLE, SAFE)
    assert main() == 0
    assert capsys.readouterr().out == "pip-audit: no known vulnerabilities\n"


def test_a_report_that_fails_is_no_clean_bill(answer):
    """Once there is data, pip-audit must make its report."""
    answer(VULNERABLE, "")
    with pytest.raises(audit.AuditError, match="no report"):
        main()


def test_all_that_people_install_is_audited():
    """The files are those that the Dockerfiles install, extras included, and the score pool's."""
    installed = set()
    for recipe in ("Dockerfile.server", "Dockerfile.trainer"):
        text = (audit.CHECKOUT / recipe).read_text()
        for name in re.findall(r"requirements/([\w${}.-]+\.txt)", text):
            installed |= {name.replace("${VARIANT}", variant) for variant in ("cpu", "gpu")}
    # server.txt is part of the two variants.
    installed = {name for name in installed if "${" not in name} - {"server.txt"}
    assert set(audit.REQUIREMENTS) == {*installed, "score-pool.txt"}
