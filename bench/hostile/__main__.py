"""Attacks a real server: `python -m bench.hostile [NAME ...]`, about four minutes for all cases.

Prints a line for each case, and a line of JSON at the end. The exit status is 1 if any attack had an effect.
"""

import argparse
import fnmatch
import json
import sys

from bench.hostile import answers, bodies, bombs, clients, heads, images, references
from bench.hostile.case import Case, Verdict, run
from bench.hostile.site import site

_MODULES = (bombs, images, references, answers, bodies, heads, clients)
CASES = tuple(case for module in _MODULES for case in module.cases())


def main() -> int:
    """Run the named cases, or all; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names",
        nargs="*",
        default=["*"],
        metavar="NAME",
        help="a case, a pattern with *, or a kind of case: image, address or request (default: all cases)",
    )
    parser.add_argument("--batch", type=int, default=20, help="cases between checks of the server (default: 20)")
    options = parser.parse_args()
    chosen = [case for case in CASES if any(_matches(case, name) for name in options.names)]
    with site() as attacked:
        verdicts = [_print_verdict(verdict) for verdict in run(attacked, chosen, batch=options.batch)]
    failed = [verdict.case.name for verdict in verdicts if verdict.escape]
    names = [verdict.case.name for verdict in verdicts]
    print(json.dumps({"cases": len(names), "contained": len(names) - len(failed), "names": names, "failed": failed}))
    return 1 if failed else 0


def _matches(case: Case, name: str) -> bool:
    return name in (case.kind, case.name) or fnmatch.fnmatch(case.name, name)  # names may contain brackets


def _print_verdict(verdict: Verdict) -> Verdict:
    word = "ESCAPED" if verdict.escape else "contained"
    line = f"{word:11}{verdict.case.kind:8}{verdict.case.name:52}{verdict.seconds:6.1f} s  {verdict.escape or ''}"
    print("".join(character if character.isprintable() else "?" for character in line).rstrip(), flush=True)
    return verdict


if __name__ == "__main__":
    sys.exit(main())
