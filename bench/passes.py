"""What do T stochastic passes cost, and what are they worth? `python -m bench.passes [--image-size 224] [--rounds 5]`.

Ways to the BALD of T = 20 passes, or to a lower bound of what it costs, on one trained version, real photos and the
same threads, run in turn in one process:

    baal           torch, `ModelWrapper.predict_on_batch(iterations=T)`, which repeats the whole network T times
    naive          onnxruntime, the literal graph T times, without the optimiser's rule that would delete its dropout
    single         onnxruntime, the network once: no uncertainty, the least that can be paid
    openvino       the same in OpenVINO, float32; openvino_int8 is quantised by OpenVINO's own NNCF, all layers of it
    ours           the server's engine: T passes in one run; ours_int8 and, on a GPU, ours_fp16 with that trunk

`X_over_Y` is X's time over Y's: below 1, X is faster. `speedup` is the other's time over ours. Then, by T: what the
passes cost over one deterministic pass, and how well they rank photos, beside a reference of 2,000 passes.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench import contenders
from bench.agreement import (
    Agreement,
    Floats,
    Nats,
    balanced_sets,
    compare,
    compute_bald,
    compute_features,
    independent_sets,
    rank,
    reference_bald,
)
from bench.contenders import NAMES
from bench.machine import describe
from bench.model import Subject, trained
from bench.rounds import Contender, Images, Timings, time_in_turn
from bench.single_pass import open_session
from contract.images.preprocess import decode_image
from contract.versions.manifest import InputSpec
from contract.versions.version import Version
from server.inference.engine import Engine, EngineOptions
from server.inference.resources import available_cpus
from server.settings import Device, Precision

_COST_BATCH = 16
_SLOW_BATCH = 16
"""The largest that the slow ones are timed on: one of 32 takes baal minutes, and over 10 GB."""
_DIGITS = 3
_OVER_OPENVINO = (
    ("ours_over_openvino_single_pass", "ours", "openvino"),
    ("int8_over_openvino_int8_single_pass", "ours_int8", "openvino_int8"),
)
"""Key of the result, and the contenders that it is a ratio of, where both take part."""


@dataclass(frozen=True, slots=True)
class Row:
    """What T passes cost and are worth."""

    passes: int
    cost_over_single_pass: float
    """At batches of 16."""
    spearman: float
    top10_overlap: float


@dataclass(frozen=True, slots=True)
class _Setting:
    """What every measurement is made on."""

    version: Version
    images: Images
    """The photos, uint8 (N, H, W, 3)."""
    threads: int
    options: argparse.Namespace

    def open_engine(self, precision: Precision = Precision.FP32, passes: int | None = None) -> Engine:
        most = max([_COST_BATCH, *self.options.batches])
        return Engine(
            self.version,
            EngineOptions(
                device=Device.AUTO, threads=self.threads, max_batch_images=most, passes=passes, precision=precision
            ),
        )


@dataclass(frozen=True, slots=True)
class _Ranking:
    """How the photos are ranked."""

    features: Floats
    """Theirs in float32, (N, F)."""
    reference: Nats
    """Their BALD over many passes, (N,)."""
    precisions: Mapping[Precision, Agreement]
    """Of each trunk with the float32 one, under the version's own masks."""
    independent: Agreement
    """Of as many passes as the version has, but under masks that are not balanced, with the reference."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables and one line of JSON."""
    options = _parse(arguments)
    subject = trained(image_size=options.image_size, labels=options.labels, int8=True)
    images = _decode(subject.photos[: options.photos], subject.version.manifest.input)
    setting = _Setting(subject.version, images, available_cpus(), options)
    engines = _open_engines(setting)
    slow, fast = _race(setting, engines)
    ranking = _rank(setting, engines)
    engines.clear()  # each of the next has weights of its own
    rows = [_weigh(setting, ranking, passes) for passes in options.passes]
    result = _summarise_times(slow, fast) | _summarise_ranking(ranking, rows) | _describe(setting, subject)
    _print_rates(slow, fast, options.batches)
    _print_rows(rows, ranking.independent, subject.version.manifest.passes)
    print(json.dumps(_round({"bench": "passes", **result})))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.passes", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--image-size", type=int, default=224, metavar="PX")
    parser.add_argument("--labels", type=int, default=400, help="photos that the version is trained on")
    parser.add_argument("--photos", type=int, default=500, help="other photos, which are ranked")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=2, help="of those that repeat the whole network")
    parser.add_argument("--batches", type=_numbers, default=[1, 8, 16, 32], metavar="N,N")
    parser.add_argument("--all", action="store_true", help=f"the slow ones also beyond batches of {_SLOW_BATCH}")
    parser.add_argument("--passes", type=_numbers, default=[10, 20, 50, 100, 200], metavar="T,T")
    parser.add_argument("--reference", type=int, default=2000, metavar="T", help="passes of the reference")
    parser.add_argument("--sets", type=int, default=5, help="sets of masks that an agreement is the mean over")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return sorted(map(int, text.split(",")))


def _decode(photos: Sequence[Path], spec: InputSpec) -> Images:
    return np.stack([decode_image(photo.read_bytes(), spec) for photo in photos])


def _open_engines(setting: _Setting) -> dict[Precision, Engine]:
    """Return the server's engine in float32, and in the other precision that its device is for, if the version has it.

    The trainer publishes no int8 trunk that ranks otherwise than float32, as one of a poor network may.
    """
    engine = setting.open_engine()
    other = setting.open_engine(Precision.FP16 if engine.provider == Device.CUDA else Precision.INT8)
    if other.precision == engine.precision:
        _say("the version can only be served in fp32: other precisions are left out")
    return {engine.precision: engine, other.precision: other}


def _race(setting: _Setting, engines: Mapping[Precision, Engine]) -> tuple[Timings, Timings]:
    """Time the slow against ours, then the fast against ours."""
    options, version, threads = setting.options, setting.version, setting.threads
    passes, device = engines[Precision.FP32].passes, Device(engines[Precision.FP32].provider)
    few = [batch for batch in options.batches if batch <= _SLOW_BATCH or options.all] or options.batches[:1]
    ours = contenders.ours(engines, options.batches)
    _say(f"baal and naive against ours, {options.slow_rounds} rounds")
    slow = contenders.repeated(version, few, passes=passes, device=device, threads=threads)
    slow_timings = time_in_turn({**slow, **ours}, setting.images, rounds=options.slow_rounds)
    slow.clear()
    _say(f"single passes against ours, {options.rounds} rounds")
    fast = contenders.single(version, setting.images, options.batches, device=device, threads=threads)
    return slow_timings, time_in_turn({**fast, **ours}, setting.images, rounds=options.rounds)


def _rank(setting: _Setting, engines: Mapping[Precision, Engine]) -> _Ranking:
    """Rank the photos in every way but those that differ in T."""
    options, engine = setting.options, engines[Precision.FP32]
    _say(f"{options.reference} passes of {len(setting.images)} photos, for reference")
    features = {precision: compute_features(each, setting.images) for precision, each in engines.items()}
    full = features.pop(Precision.FP32)
    bald = compute_bald(engine, full)
    reference = reference_bald(engine, full, passes=options.reference)
    independent = rank(engine, full, reference, independent_sets(engine.sites, engine.passes, options.sets))
    precisions = {key: compare(compute_bald(engines[key], other), bald) for key, other in features.items()}
    return _Ranking(full, reference, precisions, independent)


def _weigh(setting: _Setting, ranking: _Ranking, passes: int) -> Row:
    """Measure a server of T passes: its cost beside a single pass, and its agreement with the reference."""
    _say(f"T = {passes}")
    engine = setting.open_engine(passes=passes)
    session = open_session(setting.version, device=Device(engine.provider), threads=setting.threads)
    timings = time_in_turn(
        {
            "single": Contender(lambda images: session.run(None, {"images": images}), (_COST_BATCH,)),
            "ours": Contender(engine.run, (_COST_BATCH,)),
        },
        setting.images,
        rounds=setting.options.rounds,
    )
    sets = balanced_sets(engine.sites, passes, setting.options.sets)
    agreement = rank(engine, ranking.features, ranking.reference, sets)
    return Row(passes, timings.ratio("ours", "single")[_COST_BATCH], agreement.spearman, agreement.top10_overlap)


def _summarise_times(slow: Timings, fast: Timings) -> dict[str, object]:
    result: dict[str, object] = {
        "images_per_s": {name: timings.images_per_s(name) for timings in (slow, fast) for name in timings.seconds},
        "speedup_vs_naive": slow.ratio("naive", "ours"),
    }
    for name in [name for name in NAMES.values() if name in fast.seconds]:
        prefix = name.removeprefix("ours_")
        speedup = "speedup" if name == "ours" else f"{prefix}_speedup"
        result |= {
            f"{prefix}_over_single_pass": fast.ratio(name, "single"),
            f"{speedup}_vs_baal": slow.ratio("baal", name),
            f"{speedup}_vs_baal_best": slow.best_speedup(name, "baal"),
        }
    for key, name, over in _OVER_OPENVINO:
        if {name, over} <= fast.seconds.keys():
            result[key] = fast.ratio(name, over)
    return result


def _summarise_ranking(ranking: _Ranking, rows: Sequence[Row]) -> dict[str, object]:
    precisions = {
        f"{precision}_{figure}": value
        for precision, agreement in ranking.precisions.items()
        for figure, value in asdict(agreement).items()
    }
    return {
        **precisions,
        "independent_masks": asdict(ranking.independent),
        "passes_table": [asdict(row) for row in rows],
    }


def _describe(setting: _Setting, subject: Subject) -> dict[str, object]:
    return {
        "subject": subject.source,
        "architecture": setting.version.manifest.architecture,
        "passes": setting.version.manifest.passes,
        "photos": len(setting.images),
        "threads": setting.threads,
        "options": vars(setting.options),
        "machine": describe(),
    }


def _print_rates(slow: Timings, fast: Timings, batches: Sequence[int]) -> None:
    print(f"{'images/s':<14}" + "".join(f"{f'batch {batch}':>10}" for batch in batches))
    for name in dict.fromkeys([*slow.seconds, *fast.seconds]):
        rates = (fast if name in fast.seconds else slow).images_per_s(name)
        cells = [f"{rates[batch]:10.2f}" if batch in rates else f"{'-':>10}" for batch in batches]
        print(f"{name:<14}" + "".join(cells))


def _print_rows(rows: Sequence[Row], independent: Agreement, passes: int) -> None:
    print(f"\n{'passes':>6}{'cost / single pass':>21}{'Spearman':>11}{'top 10 %':>11}")
    for row in rows:
        print(f"{row.passes:>6}{row.cost_over_single_pass:>21.3f}{row.spearman:>11.3f}{row.top10_overlap:>11.3f}")
    print(f"{passes:>6}{'independent masks':>21}{independent.spearman:>11.3f}{independent.top10_overlap:>11.3f}\n")


def _round(value: object) -> object:
    """Round every number of a result to what it is worth."""
    if isinstance(value, Mapping):
        return {key: _round(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_round(item) for item in value]
    return round(value, _DIGITS) if isinstance(value, float) else value


def _say(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    main()
