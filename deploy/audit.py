"""Looks for known vulnerabilities in what the images install: python -m deploy.audit.

Runs pip-audit, from requirements/audit.txt, on the pinned requirements and on what these brought into the environments
of this checkout. Where it reaches no data it says so, and that is no failure; what it finds is one.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent

REQUIREMENTS = ("s3.txt", "score-pool.txt", "server-cpu.txt", "server-gpu.txt", "signatures.txt", "trainer.txt")
ENVIRONMENTS = (".venv", ".venv-server")

# Vulnerable without doubt (CVE-2020-28493): pip-audit finds nothing here when it has no data, and calls that a success.
_CANARY = "jinja2==2.11.2"
_TOOL = (".venv-audit/bin/pip-audit", "--progress-spinner=off", "--format=json", "--desc=off")


class AuditError(RuntimeError):
    """pip-audit made no report."""


def main() -> int:
    """Audit; return the exit status."""
    if not _has_data():
        print("pip-audit: no vulnerability data reachable, skipped")
        return 0
    paths = [path for name in ENVIRONMENTS for path in CHECKOUT.glob(f"{name}/lib/python*/site-packages")]
    pinned = [f"--requirement=requirements/{name}" for name in REQUIREMENTS]
    reports = [_audit(["--no-deps", "--disable-pip", *pinned]), _audit([f"--path={path}" for path in paths])]
    found = {package: known for report in reports for package, known in findings(report).items()}
    for package, known in sorted(found.items()):
        print(f"pip-audit: {package}: {known}", file=sys.stderr)
    if not found:
        print("pip-audit: no known vulnerabilities")
    return int(bool(found))


def findings(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the vulnerable packages of pip-audit's JSON report, and what is known of each."""
    return {
        f"{package['name']} {package['version']}": ", ".join(
            f"{known['id']} (mended in {' or '.join(known['fix_versions']) or 'no version yet'})"
            for known in package["vulns"]
        )
        for package in report["dependencies"]
        if package.get("vulns")
    }


def _has_data() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "canary.txt"
        canary.write_text(_CANARY + "\n", encoding="utf-8")
        try:
            return bool(findings(_audit(["--no-deps", "--disable-pip", f"--requirement={canary}"])))
        except AuditError:
            return False


def _audit(options: Sequence[str]) -> Mapping[str, Any]:
    """Return pip-audit's report.

    Raises:
        AuditError: if it makes none.
    """
    done = subprocess.run([*_TOOL, *options], cwd=CHECKOUT, check=False, capture_output=True, text=True)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError as err:
        raise AuditError(f"pip-audit ended with status {done.returncode} and no report:\n{done.stderr}") from err
    return report


if __name__ == "__main__":
    sys.exit(main())
