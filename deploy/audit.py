"""Checks the packages of the images for known vulnerabilities: python -m deploy.audit.

Runs pip-audit (requirements/audit.txt) on the pinned requirements and on the environments of this checkout. Fails if it
finds a vulnerability, but not if the vulnerability data cannot be reached, for example without a network.
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

# Known to be vulnerable (CVE-2020-28493). pip-audit also succeeds without data, but then does not report this package.
_CANARY = "jinja2==2.11.2"
_TOOL = (".venv-audit/bin/pip-audit", "--progress-spinner=off", "--format=json", "--desc=off")


class AuditError(RuntimeError):
    """pip-audit printed no report."""


def main() -> int:
    """Run the check and return the exit status."""
    if not _has_data():
        print("pip-audit: no vulnerability data reachable, skipped")
        return 0
    paths = [path for name in ENVIRONMENTS for path in CHECKOUT.glob(f"{name}/lib/python*/site-packages")]
    pinned = [f"--requirement=requirements/{name}" for name in REQUIREMENTS]
    reports = [_audit(["--no-deps", "--disable-pip", *pinned]), _audit([f"--path={path}" for path in paths])]
    vulnerable = {package: ids for report in reports for package, ids in find_vulnerabilities(report).items()}
    for package, ids in sorted(vulnerable.items()):
        print(f"pip-audit: {package}: {ids}", file=sys.stderr)
    if not vulnerable:
        print("pip-audit: no known vulnerabilities")
    return int(bool(vulnerable))


def find_vulnerabilities(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the vulnerable packages in pip-audit's JSON report, with the ids and fixes of their vulnerabilities."""
    return {
        f"{package['name']} {package['version']}": ", ".join(
            f"{vulnerability['id']} (fixed in {' or '.join(vulnerability['fix_versions']) or 'no version yet'})"
            for vulnerability in package["vulns"]
        )
        for package in report["dependencies"]
        if package.get("vulns")
    }


def _has_data() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "canary.txt"
        canary.write_text(_CANARY + "\n", encoding="utf-8")
        try:
            return bool(find_vulnerabilities(_audit(["--no-deps", "--disable-pip", f"--requirement={canary}"])))
        except AuditError:
            return False


def _audit(options: Sequence[str]) -> Mapping[str, Any]:
    """Return pip-audit's report.

    Raises:
        AuditError: if it prints none.
    """
    done = subprocess.run([*_TOOL, *options], cwd=CHECKOUT, check=False, capture_output=True, text=True)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError as err:
        raise AuditError(f"pip-audit ended with status {done.returncode} and no report:\n{done.stderr}") from err
    return report


if __name__ == "__main__":
    sys.exit(main())
