"""Sends everything hostile to a real server: `python -m bench.hostile [NAME ...]`, about four minutes for all.

Prints a line for each case and, last, one line of JSON. The exit status is 1 if anything escaped.
"""

import argparse
import fnmatch
import json
import sys

from bench.hostile.runner import Verdict, run
from bench.hostile.site import site
from bench.hostile.table import CASES


def main() -> int:
    """Run the cases that were named, or all."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="only these cases, or those of a kind: image, address, request; * stands for anything",
    )
    names = parser.parse_args().names or ["*"]
    chosen = [case for case in CASES if any(name == case.kind or fnmatch.fnmatch(case.name, name) for name in names)]
    with site() as attacked:
        verdicts = [_show(verdict) for verdict in run(attacked, chosen)]
    failed = [verdict.case.name for verdict in verdicts if verdict.escape]
    summary = {
        "cases": len(verdicts),
        "contained": len(verdicts) - len(failed),
        "names": [verdict.case.name for verdict in verdicts],
        "failed": failed,
    }
    print(json.dumps(summary))
    return 1 if failed else 0


def _show(verdict: Verdict) -> Verdict:
    case = verdict.case
    line = (
        f"{'ESCAPED  ' if verdict.escape else 'contained'}  {case.kind:8}{case.name:34}{verdict.seconds:6.1f} s  "
        f"{case.sent}: {verdict.escape or case.must}"
    )
    print("".join(character if character.isprintable() else "?" for character in line), flush=True)
    return verdict


if __name__ == "__main__":
    sys.exit(main())
