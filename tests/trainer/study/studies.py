"""Studies with synthetic curves in place of trained models."""

from dataclasses import replace

import numpy as np

from trainer.study.records import Round, Study

EFFICIENCY = {"random": 1.0, "baal-bald": 1.5, "labelnext": 2.6, "margin": 1.8, "bald": 1.55, "core-set": 0.9}
"""Worth of a strategy's label in random labels, on rare classes; 1 for other strategies."""


def make_study(*, strategies=tuple(EFFICIENCY), seeds=5, rounds=9, classes=10, default="labelnext"):
    """Return a study with long-tailed classes and 100 labels per round, including the initial round."""
    pool = np.maximum(1, np.round(5000 * 100 ** (-np.arange(classes) / max(1, classes - 1)))).astype(int)
    minority = tuple(range(classes - max(1, classes // 3), classes))
    return Study(
        name="cifar10-lt",
        classes=tuple(f"class {index}" for index in range(classes)),
        minority=minority,
        pool_by_class=tuple(pool.tolist()),
        test_by_class=(250,) * classes,
        settings={
            "command": "python -m trainer simulate --images pool.zip --manifest manifest.csv",
            "default": default,
            "machine": "2 cores, 4 GB",
            "date": "2026-01-31",
            "passes": 20,
            "learning_rate": 0.004,
        },
        runs={
            name: tuple(make_run(name, seed, pool / pool.sum(), minority, rounds) for seed in range(seeds))
            for name in strategies
        },
    )


def make_run(name, seed, shares, minority, rounds):
    """Return the rounds of a strategy, which labels rare classes more often the greater its efficiency."""
    own, efficiency = np.random.default_rng([seed, *name.encode()]), EFFICIENCY.get(name, 1.0)
    common = np.random.default_rng(seed).normal(0, 0.02)
    weight = shares ** (1 / efficiency)
    weight /= weight.sum()
    run = []
    for number in range(rounds):
        labels = 100 * (number + 1)
        counts = np.random.default_rng(seed).multinomial(100, shares)
        counts += own.multinomial(labels - 100, weight)
        noise = own.normal(0, 0.008, len(shares)) if number else np.zeros(len(shares))
        f1 = np.clip(1 - 1.6 / (counts + 3) ** 0.3 + common + noise, 0, 1)
        accuracy = float(np.clip((f1 * shares).sum() + 0.02, 0, 1))
        run.append(
            Round(
                strategy=name,
                seed=seed,
                round=number,
                labels=labels,
                labels_by_class=tuple(counts.tolist()),
                accuracy=accuracy,
                balanced_accuracy=float(f1.mean()),
                macro_f1=float(f1.mean()),
                minority_f1=float(f1[list(minority)].mean()),
                nll=float(2.3 * (1 - f1.mean())),
                ece=0.05 + 0.1 * float(1 - f1.mean()),
                f1=tuple(f1.tolist()),
                train_s=4.0 + labels / 300,
                score_s=0.0 if name == "random" or number == rounds - 1 else 9.0 + seed / 10,
                choose_s=0.0 if number == rounds - 1 else 0.1 * efficiency,
            )
        )
    return tuple(run)


def change(study, **fields):
    """Return a study with fields of its rounds replaced by the results of functions of the round."""
    runs = {
        strategy: tuple(
            tuple(replace(each, **{name: make(each) for name, make in fields.items()}) for each in run) for run in runs
        )
        for strategy, runs in study.runs.items()
    }
    return replace(study, runs=runs)
