"""Does all of it really run on the GPU, how exactly, how fast? `python -m bench.gpu [--parts gate,server]`.

Needs no network, and some eight minutes. Parts, each with its seconds, or why it was skipped or failed:

    placement   which nodes of backbone and head ran on which provider; a convolution or product elsewhere is a failure
    gate        the server's validation in fp32 and in fp16: the largest difference from torch, and how
                alike they rank
    roofline    images/s of the backbone with copies to the card and back, and its share of the card's peak, which may
                pass 1 in fp32, since cuDNN has ways to convolve with fewer multiplications
    training    images/s of an epoch of `--train all` in torch
    run         `python -m trainer run --train all`, from images to a published version
    passes      bench.passes, short
    server      bench.server, short

`--device cpu --quick` shows, where there is no GPU, that the bench itself works. Ends with status 1 if a part failed.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

from bench.cards import describe_card
from bench.frame import Row, read_options, report, say
from bench.gpu_parts import FULL, QUICK, Setting, Skipped, measure_gate, measure_placement, measure_roofline
from bench.gpu_programs import run_passes, run_server, run_trainer
from bench.gpu_training import measure_training
from bench.model import trained
from server.inference.cuda import check_device
from server.settings import Device

_OPTIONS: Mapping[str, tuple[object, str]] = {
    "device": (("cuda", "cpu"), "that all is to run on"),
    "quick": (False, "images of 32 pixels, and few of them"),
    "parts": ("all", "those to run, with commas between them"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, tell of each part when it is over, and print one line of JSON; return the exit status."""
    started = time.monotonic()
    options = read_options("gpu", __doc__, _OPTIONS, arguments)
    asked = _choose(options.parts)
    device, sizes = Device(options.device), QUICK if options.quick else FULL
    check_device(device)
    subject = trained(image_size=sizes.image_size, labels=sizes.labels, precision="fp32")
    say(f"a version to measure on, after {time.monotonic() - started:.0f} s")
    setting = Setting(device, sizes, subject)
    parts = {name: _measure(name, setting) for name in asked}
    failed = [name for name, part in parts.items() if "failed" in part]
    told = {"failed": failed, "seconds": time.monotonic() - started, "card": describe_card(), "parts": parts}
    report("gpu", options, subject, told)
    return 1 if failed else 0


def _choose(parts: str) -> list[str]:
    asked = list(_PARTS) if parts == "all" else parts.split(",")
    if unknown := sorted(set(asked) - _PARTS.keys()):
        sys.exit(f"--parts: expected some of {','.join(_PARTS)}; got {','.join(unknown)}")
    return asked


def _measure(name: str, setting: Setting) -> Row:
    """Run a part, and say at once what came of it, in case that the process is ended before its last line."""
    started, part = time.monotonic(), dict[str, object]()
    try:
        part.update(_PARTS[name](setting))
    except Skipped as err:
        part["skipped"] = str(err)
    except Exception as err:  # whatever one part meets, the others are to be measured
        traceback.print_exc()
        part["failed"] = f"{type(err).__name__}: {err}"
    part["seconds"] = time.monotonic() - started
    say(f"{name}: {json.dumps(part, default=str)}")
    return part


_PARTS: Mapping[str, Callable[[Setting], Row]] = {
    "placement": measure_placement,
    "gate": measure_gate,
    "roofline": measure_roofline,
    "training": measure_training,
    "run": run_trainer,
    "passes": run_passes,
    "server": run_server,
}


if __name__ == "__main__":
    sys.exit(main())
