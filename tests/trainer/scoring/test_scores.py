from dataclasses import asdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.scoring.scores import Score, ScoreLog, digest


def score(task, classes=3):
    rng = np.random.default_rng(task)
    return Score(
        task=task,
        result=[{"from_name": "label", "value": {"choices": ["Kätzchen 🐈"]}, "meta": {"bald": 0.5}}],
        probabilities=rng.random(classes, np.float32),
        bald=float(rng.random()),
        entropy=float(rng.random()),
        embedding=rng.random(256).astype(np.float16).astype(np.float32),
    )


def to_plain(score):
    return {**asdict(score), "probabilities": score.probabilities.tolist(), "embedding": score.embedding.tolist()}


DIGESTS = {number: digest({"image": f"{number}.png"}) for number in range(10)}


def test_logged_scores_are_read_unless_the_data_has_changed(tmp_path):
    ScoreLog(tmp_path / "new" / "log").append([score(1), score(2)], DIGESTS)
    ScoreLog(tmp_path / "new" / "log").append([score(3)], DIGESTS)
    log = ScoreLog(tmp_path / "new" / "log")
    read = log.read(DIGESTS)
    assert list(read) == [1, 2, 3]
    assert all(to_plain(read[number]) == to_plain(score(number)) for number in read)
    assert list(log.read({1: DIGESTS[1], 2: digest({"image": "other.png"})})) == [1]


@given(st.integers(0, 3000))
def test_only_a_truncated_line_is_lost(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("log") / "log"
    log = ScoreLog(path)
    log.append([score(1)], DIGESTS)
    line_bytes = path.stat().st_size
    log.append([score(2)], DIGESTS)
    content = path.read_bytes()[: min(line_bytes + cut, 2 * line_bytes)]
    path.write_bytes(content)
    expected = [1, 2] if content.count(b"\n") == 2 else [1]
    assert list(log.read(DIGESTS)) == expected
    log.append([score(3)], DIGESTS)
    assert list(log.read(DIGESTS)) == [*expected, 3]
