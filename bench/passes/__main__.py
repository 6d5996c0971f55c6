"""What do T stochastic passes cost, and what are they worth? `python -m bench.passes [--image-size 224] [--rounds 5]`.

Ways to the BALD of T = 20 passes, or to a lower bound of what it costs, on one trained version, real photos and the
same threads, run in turn in one process:

    baal           torch, `ModelWrapper.predict_on_batch(iterations=T)`, which repeats the whole network T times
    naive          onnxruntime, the literal graph T times, without the optimiser's rule that would delete its dropout
    single         onnxruntime, the network once: no uncertainty, the least that can be paid
    openvino       the same in OpenVINO, float32; openvino_int8 is quantised by OpenVINO's own NNCF, all layers of it
    ours           the server's engine: T passes in one run; ours_int8 and, on a GPU, ours_fp16 with that backbone

`X_over_Y` is X's time over Y's: below 1, X is faster. `speedup` is the other's time over ours. Then, by T: what the
passes cost over one deterministic pass, and how well they rank photos, beside a reference of 2,000 passes.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.harness.frame import Row, log, print_table, read_options, report
from bench.passes import contenders
from bench.passes.agreement import compare, compute_bald, compute_features, independent_masks, rank, reference_bald
from bench.passes.contenders import NAMES, open_session
from bench.passes.rounds import Images, Timings, time_in_turn
from bench.subjects.model import trained
from contract.graph.masks import draw_masks
from contract.images.preprocess import decode_image
from contract.versions.version import Version
from server.inference.engine import Engine, EngineOptions
from server.inference.resources import available_cpus
from server.settings import Device, Precision

_OPTIONS: Mapping[str, tuple[object, str]] = {
    "image_size": (224, "in pixels"),
    "labels": (400, "photos that the version is trained on"),
    "photos": (500, "other photos, which are ranked"),
    "rounds": (5, "of those that run the network once"),
    "slow_rounds": (2, "of those that repeat the whole network"),
    "batches": ([1, 8, 16, 32], "sizes"),
    "passes": ([10, 20, 50, 100, 200], "T, to be weighed"),
    "reference": (2000, "passes of the reference"),
    "sets": (5, "sets of masks that an agreement is the mean over"),
    "provider": (("auto", "cpu", "cuda"), "of all but OpenVINO"),
    "precision": (("auto", "fp32"), "that the version is trained in"),
}
_COST_BATCH = 16
_SLOW_BATCH = 16
"""The largest that the slow ones are timed on: one of 32 takes baal minutes, and over 10 GB."""
Engines = Mapping[Precision, Engine]


@dataclass(frozen=True, slots=True)
class _Setting:
    """What every measurement is made on."""

    version: Version
    images: Images
    """The photos, uint8 (N, H, W, 3)."""
    engine: EngineOptions
    options: argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables and one line of JSON."""
    options = read_options("passes", __doc__, _OPTIONS, arguments)
    subject = trained(image_size=options.image_size, labels=options.labels, precision=options.precision)
    spec, photos = subject.version.manifest.input, subject.photos[: options.photos]
    images = np.stack([decode_image(photo.read_bytes(), spec) for photo in photos])
    most = max([_COST_BATCH, *options.batches])
    engine = EngineOptions(device=Device(options.provider), threads=available_cpus(), max_batch_images=most)
    setting = _Setting(subject.version, images, engine, options)
    engines = _open_engines(setting)
    slow, fast = _race(setting, engines)
    ranking, rows = _rank(setting, engines)
    rates = {name: timings.images_per_s(name) for timings in (slow, fast) for name in timings.seconds}
    by_batch = {
        name: {f"batch {batch}": rate.get(batch, "-") for batch in options.batches} for name, rate in rates.items()
    }
    print_table([{"images/s": name, **row} for name, row in by_batch.items()])
    print_table(rows)
    times = {"images_per_s": rates, **_compare_times(slow, fast)}
    report("passes", options, subject, {**times, **ranking, "passes_table": rows, "threads": engine.threads})


def _open_engines(setting: _Setting) -> dict[Precision, Engine]:
    """Return the server's engine in float32, and in the other precision of its device if the version has that."""
    engine = Engine(setting.version, replace(setting.engine, precision=Precision.FP32))
    precision = Precision.FP16 if engine.provider == Device.CUDA else Precision.INT8
    other = Engine(setting.version, replace(setting.engine, precision=precision))
    if other.precision == engine.precision:
        log("the version can only be served in fp32: other precisions are left out")
    return {engine.precision: engine, other.precision: other}


def _race(setting: _Setting, engines: Engines) -> tuple[Timings, Timings]:
    """Time the slow against ours, then the fast against ours."""
    options, version, threads = setting.options, setting.version, setting.engine.threads
    passes, device = engines[Precision.FP32].passes, Device(engines[Precision.FP32].provider)
    few = [batch for batch in options.batches if batch <= _SLOW_BATCH] or options.batches[:1]
    ours = {NAMES[precision]: engine.run for precision, engine in engines.items()}
    log(f"baal and naive against ours, {options.slow_rounds} rounds")
    repeated = contenders.repeated(version, passes=passes, device=device, threads=threads)
    slow = () if device is Device.CUDA else tuple(repeated)
    slow_timings = time_in_turn(repeated | ours, setting.images, few, rounds=options.slow_rounds, slow=slow)
    repeated.clear()
    log(f"single passes against ours, {options.rounds} rounds")
    single = contenders.single(version, setting.images, device=device, threads=threads)
    return slow_timings, time_in_turn(single | ours, setting.images, options.batches, rounds=options.rounds)


def _rank(setting: _Setting, engines: dict[Precision, Engine]) -> tuple[Row, list[Row]]:
    """Rank the photos in every way: by precision and under masks that are not balanced, then by T."""
    options, engine = setting.options, engines[Precision.FP32]
    log(f"{options.reference} passes of {len(setting.images)} photos, for reference")
    features = {precision: compute_features(each, setting.images) for precision, each in engines.items()}
    full = features.pop(Precision.FP32)
    bald = compute_bald(engine, full)
    reference = reference_bald(engine, full, passes=options.reference)
    rngs = [np.random.default_rng([engine.passes, i]) for i in range(options.sets)]
    independent = [independent_masks(rng, engine.sites, engine.passes) for rng in rngs]
    ranking: dict[str, object] = {"independent_masks": rank(engine, full, reference, independent)}
    for precision, other in features.items():
        agreement = compare(compute_bald(engines[precision], other), bald)
        ranking |= {f"{precision}_{figure}": value for figure, value in agreement.items()}
    engines.clear()  # each of the next has weights of its own
    rows: list[Row] = []
    for passes in options.passes:
        log(f"T = {passes}")
        weighed = Engine(setting.version, replace(setting.engine, passes=passes))
        balanced = [draw_masks(f"bench/{i}", weighed.sites, passes) for i in range(options.sets)]
        agreement = rank(weighed, full, reference, balanced)
        rows.append({"passes": passes, "cost_over_single_pass": _cost(setting, weighed), **agreement})
    return ranking, rows


def _cost(setting: _Setting, engine: Engine) -> float:
    """Return what an engine's passes take over a single one, at batches of 16."""
    session = open_session(setting.version, device=Device(engine.provider), threads=setting.engine.threads)
    runs = {"single": lambda images: session.run(None, {"images": images}), "ours": engine.run}
    timings = time_in_turn(runs, setting.images, (_COST_BATCH,), rounds=setting.options.rounds)
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
