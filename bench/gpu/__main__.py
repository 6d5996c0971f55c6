"""Does everything run on the GPU, how exactly, how fast? `python -m bench.gpu [--parts gate,server]`.

Needs no network, and takes some eight minutes. Each part reports its seconds, or why it was skipped or failed:

    placement   the provider of each node of backbone and head; convolutions and products must run on the GPU
    gate        the server's validation in fp32 and fp16: the largest difference from torch, and the rank correlation
    roofline    images/s of the backbone with copies to the card and back, and the share of the card's peak, which may
                exceed 1 in fp32, since cuDNN's algorithms need fewer multiplications
    training    images/s of an epoch of `--train all` in torch
    run         `python -m trainer run --train all`, from images to a published version
    passes      bench.passes, short
    server      bench.server, short

Without a GPU, `--device cpu --quick` tests the benchmark itself. Exits with status 1 if a part failed.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from bench.gpu.cards import describe_card
from bench.gpu.measurements import by_precision, measure_epoch, measure_placement, measure_roofline, validate
from bench.gpu.programs import run_bench, run_trainer
from bench.gpu.setup import FULL, QUICK, Setup, Skipped
from bench.harness.frame import Row, log, read_options, report
from bench.subjects.model import train_subject
from server.inference.sessions import check_device
from server.settings import Device

_OPTIONS: Mapping[str, tuple[object, str]] = {
    "device": (("cuda", "cpu"), "to run on"),
    "quick": (False, "use few images of 32 pixels"),
    "parts": ("all", "comma-separated parts to run"),
}
_PARTS: Mapping[str, Callable[[Setup], Row]] = {
    "placement": partial(by_precision, measure_placement),
    "gate": partial(by_precision, validate),
    "roofline": partial(by_precision, measure_roofline),
    "training": measure_epoch,
    "run": run_trainer,
    "passes": partial(run_bench, "passes"),
    "server": partial(run_bench, "server"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, log the result of each part, and print a line of JSON; return the exit status."""
    started = time.monotonic()
    options = read_options("gpu", __doc__, _OPTIONS, arguments)
    names = list(_PARTS) if options.parts == "all" else options.parts.split(",")
    if unknown := sorted(set(names) - _PARTS.keys()):
        sys.exit(f"--parts: expected some of {','.join(_PARTS)}; got {','.join(unknown)}")
    device, sizes = Device(options.device), QUICK if options.quick else FULL
    check_device(device)
    subject = train_subject(image_size=sizes.image_size, labels=sizes.labels, precision="fp32")
    log(f"the version is ready after {time.monotonic() - started:.0f} s")
    setup = Setup(device, sizes, subject)
    parts = {name: _measure(name, setup) for name in names}
    failed = [name for name, part in parts.items() if "failed" in part]
    result = {"failed": failed, "seconds": time.monotonic() - started, "card": describe_card(), "parts": parts}
    report("gpu", options, subject, result)
    return 1 if failed else 0


def _measure(name: str, setup: Setup) -> Row:
    """Run a part and log its result at once, in case the process is killed before the end."""
    started, part = time.monotonic(), dict[str, object]()
    try:
        part.update(_PARTS[name](setup))
    except Skipped as err:
        part["skipped"] = str(err)
    except Exception as err:  # a failed part must not stop the others
        traceback.print_exc()
        part["failed"] = f"{type(err).__name__}: {err}"
    part["seconds"] = time.monotonic() - started
    log(f"{name}: {json.dumps(part, default=str)}")
    return part


if __name__ == "__main__":
    sys.exit(main())
