"""What do T stochastic passes cost, and how well do they rank? `python -m bench.passes [--rounds 5]`.

Compares ways to compute BALD from T = 20 passes, and lower bounds of its cost, on one trained version, with the same
photos and threads, in one process:

    baal           torch, `ModelWrapper.predict_on_batch(iterations=T)`, which repeats the whole network T times
    naive          onnxruntime, the literal graph T times, without the optimiser's rule that deletes its dropout
    single         onnxruntime, the network once without uncertainty, a lower bound
    openvino       the same in OpenVINO, float32; openvino_int8 is fully quantised by OpenVINO's NNCF
    ours           the server's engine, T passes in one run; ours_int8 and, on a GPU, ours_fp16 with such a backbone

`X_over_Y` is X's time over Y's: below 1, X is faster. `speedup` is the other's time over ours. Then, by T: the cost of
the passes over one deterministic pass, and the agreement of their ranking with a reference of 2,000 passes.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.harness.frame import Row, log, print_table, read_options, report
from bench.passes import contenders
from bench.passes.agreement import (
    compare,
    compute_bald,
    compute_features,
    independent_masks,
    mean_agreement,
    reference_bald,
)
from bench.passes.contenders import NAMES, open_session
from bench.passes.rounds import Images, Timings, time_in_turn
from bench.subjects.model import train_subject
from contract.graph.masks import draw_masks
from contract.images.preprocess import decode_image
from contract.versions.version import Version
from server.inference.engine import Engine, EngineOptions
from server.inference.resources import available_cpus
from server.settings import Device, Precision

_OPTIONS: Mapping[str, tuple[object, str]] = {
    "image_size": (224, "in pixels"),
    "labels": (400, "photos to train the version on"),
    "photos": (500, "other photos, to rank"),
    "rounds": (5, "for contenders that run the network once"),
    "slow_rounds": (2, "for contenders that repeat the whole network"),
    "batches": ([1, 8, 16, 32], "batch sizes"),
    "passes": ([10, 20, 50, 100, 200], "values of T"),
    "reference": (2000, "passes of the reference"),
    "sets": (5, "sets of masks to average an agreement over"),
    "provider": (("auto", "cpu", "cuda"), "of all but OpenVINO"),
    "precision": (("auto", "fp32"), "to train the version with"),
}
_COST_BATCH = 16
_SLOW_BATCH = 16
"""Largest batch of slow contenders: with 32 images, baal takes minutes and over 10 GB."""
Engines = Mapping[Precision, Engine]


@dataclass(frozen=True, slots=True)
class _Setup:
    """The version, photos and options of all measurements."""

    version: Version
    images: Images
    """uint8 (N, H, W, 3)."""
    engine: EngineOptions
    options: argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print tables and a line of JSON."""
    options = read_options("passes", __doc__, _OPTIONS, arguments)
    subject = train_subject(image_size=options.image_size, labels=options.labels, precision=options.precision)
    spec, photos = subject.version.manifest.input, subject.photos[: options.photos]
    images = np.stack([decode_image(photo.read_bytes(), spec) for photo in photos])
    max_batch = max([_COST_BATCH, *options.batches])
    engine = EngineOptions(device=Device(options.provider), threads=available_cpus(), max_batch_images=max_batch)
    setup = _Setup(subject.version, images, engine, options)
    engines = _open_engines(setup)
    slow, fast = _time_contenders(setup, engines)
    ranking, rows = _measure_agreement(setup, engines)
    rates = {name: timings.images_per_s(name) for timings in (slow, fast) for name in timings.seconds}
    by_batch = {
        name: {f"batch {batch}": rate.get(batch, "-") for batch in options.batches} for name, rate in rates.items()
    }
    print_table([{"images/s": name, **row} for name, row in by_batch.items()])
    print_table(rows)
    times = {"images_per_s": rates, **_compare_times(slow, fast)}
    report("passes", options, subject, {**times, **ranking, "passes_table": rows, "threads": engine.threads})


def _open_engines(setup: _Setup) -> dict[Precision, Engine]:
    """Return the server's engine in fp32, and in the reduced precision of the device if the version has it."""
    engine = Engine(setup.version, replace(setup.engine, precision=Precision.FP32))
    precision = Precision.FP16 if engine.provider == Device.CUDA else Precision.INT8
    reduced = Engine(setup.version, replace(setup.engine, precision=precision))
    if reduced.precision == engine.precision:
        log("the version can only be served in fp32; other precisions are skipped")
    return {engine.precision: engine, reduced.precision: reduced}


def _time_contenders(setup: _Setup, engines: Engines) -> tuple[Timings, Timings]:
    """Time the slow contenders against ours, then the fast ones against ours."""
    options, version, threads = setup.options, setup.version, setup.engine.threads
    passes, device = engines[Precision.FP32].passes, Device(engines[Precision.FP32].provider)
    batches = [batch for batch in options.batches if batch <= _SLOW_BATCH] or options.batches[:1]
    ours = {NAMES[precision]: engine.run for precision, engine in engines.items()}
    log(f"baal and naive against ours, {options.slow_rounds} rounds")
    repeated = contenders.repeated(version, passes=passes, device=device, threads=threads)
    slow = () if device is Device.CUDA else tuple(repeated)
    slow_timings = time_in_turn(repeated | ours, setup.images, batches, rounds=options.slow_rounds, slow=slow)
    repeated.clear()
    log(f"single passes against ours, {options.rounds} rounds")
    single = contenders.single(version, setup.images, device=device, threads=threads)
    return slow_timings, time_in_turn(single | ours, setup.images, options.batches, rounds=options.rounds)


def _measure_agreement(setup: _Setup, engines: dict[Precision, Engine]) -> tuple[Row, list[Row]]:
    """Return the agreement with the reference of each precision and of independent masks, and by number of passes."""
    options, engine = setup.options, engines[Precision.FP32]
    log(f"{options.reference} passes of {len(setup.images)} photos, for reference")
    features = {precision: compute_features(each, setup.images) for precision, each in engines.items()}
    full = features.pop(Precision.FP32)
    bald = compute_bald(engine, full)
    reference = reference_bald(engine, full, passes=options.reference)
    rngs = [np.random.default_rng([engine.passes, i]) for i in range(options.sets)]
    independent = [independent_masks(rng, engine.sites, engine.passes) for rng in rngs]
    ranking: dict[str, object] = {"independent_masks": mean_agreement(engine, full, reference, independent)}
    for precision, other in features.items():
        agreement = compare(compute_bald(engines[precision], other), bald)
        ranking |= {f"{precision}_{figure}": value for figure, value in agreement.items()}
    engines.clear()  # free their weights before the next engines load theirs
    rows: list[Row] = []
    for passes in options.passes:
        log(f"T = {passes}")
        engine = Engine(setup.version, replace(setup.engine, passes=passes))
        balanced = [draw_masks(f"bench/{i}", engine.sites, passes) for i in range(options.sets)]
        agreement = mean_agreement(engine, full, reference, balanced)
        rows.append({"passes": passes, "cost_over_single_pass": _cost(setup, engine), **agreement})
    return ranking, rows


def _cost(setup: _Setup, engine: Engine) -> float:
    """Return the time of an engine's passes over that of a single pass, in batches of 16."""
    session = open_session(setup.version, device=Device(engine.provider), threads=setup.engine.threads)
    runs = {"single": lambda images: session.run(None, {"images": images}), "ours": engine.run}
    timings = time_in_turn(runs, setup.images, (_COST_BATCH,), rounds=setup.options.rounds)
    return timings.ratio("ours", "single")[_COST_BATCH]


def _compare_times(slow: Timings, fast: Timings) -> dict[str, object]:
    result: dict[str, object] = {"speedup_vs_naive": slow.ratio("naive", "ours")}
    for name in [name for name in NAMES.values() if name in fast.seconds]:
        prefix = name.removeprefix("ours_")
        speedup = "speedup" if name == "ours" else f"{prefix}_speedup"
        result[f"{prefix}_over_single_pass"] = fast.ratio(name, "single")
        result[f"{speedup}_vs_baal"] = slow.ratio("baal", name)
    for ours, theirs in (("ours", "openvino"), ("ours_int8", "openvino_int8")):
        if {ours, theirs} <= fast.seconds.keys():
            result[f"{ours.removeprefix('ours_')}_over_{theirs}_single_pass"] = fast.ratio(ours, theirs)
    return result


if __name__ == "__main__":
    main()
