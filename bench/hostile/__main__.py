"""Sends everything hostile to a real server: `python -m bench.hostile [NAME ...]`, about four minutes for all.

Prints a line for each case and, last, one line of JSON. The exit status is 1 if anything escaped.
"""

import argparse
import fnmatch
import json
import sys

from bench.hostile import answers, bodies, bombs, clients, heads, images, references
from bench.hostile.case import Verdict, run
from bench.hostile.site import site

CASES = tuple(case for each in (bombs, images, references, answers, bodies, heads, clients) for case in each.cases())


def main() -> int:
    """Run the cases that were named, or all."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names",
        nargs="*",
        default=["*"],
        metavar="NAME",
        help="only these cases, or those of a kind: image, address, request; * stands for anything",
    )
    parser.add_argument("--batch", type=int, default=20, help="cases after which the server is looked at (default: 20)")
    options = parser.parse_args()
    chosen = [
        case for case in CASES if any(case.kind == each or fnmatch.fnmatch(case.name, each) for each in options.names)
    ]
    with site() as attacked:
        verdicts = [_show(verdict) for verdict in run(attacked, chosen, batch=options.batch)]
    failed = [verdict.case.name for verdict in verdicts if verdict.escape]
    names = [verdict.case.name for verdict in verdicts]
    print(json.dumps({"cases": len(names), "contained": len(names) - len(failed), "names": names, "failed": failed}))
    return 1 if failed else 0


def _show(verdict: Verdict) -> Verdict:
    word = "ESCAPED" if verdict.escape else "contained"
    line = f"{word:11}{verdict.case.kind:8}{verdict.case.name:44}{verdict.seconds:6.1f} s  {verdict.escape or ''}"
    print("".join(character if character.isprintable() else "?" for character in line).rstrip(), flush=True)
    return verdict


if __name__ == "__main__":
    sys.exit(main())
