"""Sends everything hostile to a real server: `python -m bench.hostile [NAME ...]`, about four minutes for all.

Prints a line for each case and, last, one line of JSON. The exit status is 1 if anything escaped.
"""

import argparse
import fnmatch
import json
import sys

from bench.hostile.runner import CASES, Verdict, run
from bench.hostile.site import site


def main() -> int:
    """Run the cases that were named, or all."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="only these cases, or those of a kind: image, address, request; * stands for anything",
    )
    parser.add_argument("--batch", type=int, default=20, help="cases after which the server is looked at (default: 20)")
    options = parser.parse_args()
    names = options.names or ["*"]
    chosen = [case for case in CASES if any(name == case.kind or fnmatch.fnmatch(case.name, name) for name in names)]
    with site() as attacked:
        verdicts = [_show(verdict) for verdict in run(attacked, chosen, batch=options.batch)]
    failed = [verdict.case.name for verdict in verdicts if verdict.escape]
    names = [verdict.case.name for verdict in verdicts]
    print(json.dumps({"cases": len(names), "contained": len(names) - len(failed), "names": names, "failed": failed}))
    return 1 if failed else 0


def _show(verdict: Verdict) -> Verdict:
    case = verdict.case
    word = "ESCAPED" if verdict.escape else "contained"
    line = f"{word:11}{case.kind:8}{case.name:44}{verdict.seconds:6.1f} s  {verdict.escape or ''}"
    print("".join(character if character.isprintable() else "?" for character in line).rstrip(), flush=True)
    return verdict


if __name__ == "__main__":
    sys.exit(main())
