import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ConfigError
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


def same(first, second):
    return (
        (first.task, first.result, first.bald, first.entropy)
        == (second.task, second.result, second.bald, second.entropy)
        and (first.probabilities == second.probabilities).all()
        and (first.embedding == second.embedding).all()
    )


DIGESTS = {number: digest({"image": f"{number}.png"}) for number in range(10)}


def test_what_was_appended_is_read_back_by_the_next_run(tmp_path):
    """Exactly: the arrangement hangs on every bit."""
    ScoreLog(tmp_path / "new" / "log").append([score(1), score(2)], DIGESTS)
    ScoreLog(tmp_path / "new" / "log").append([score(3)], DIGESTS)
    found = ScoreLog(tmp_path / "new" / "log").read(DIGESTS)
    assert list(found) == [1, 2, 3]
    assert all(same(found[number], score(number)) for number in found)


def test_a_task_whose_data_has_changed_is_scored_again(tmp_path):
    """It refers to another image."""
    log = ScoreLog(tmp_path / "log")
    log.append([score(1), score(2)], DIGESTS)
    assert list(log.read({1: DIGESTS[1], 2: digest({"image": "other.png"})})) == [1]


@given(st.integers(0, 3000))
def test_a_line_that_was_cut_short_costs_itself_and_no_other(tmp_path_factory, cut):
    """Wherever the writer died; what is appended later can be read."""
    path = tmp_path_factory.mktemp("log") / "log"
    log = ScoreLog(path)
    log.append([score(1)], DIGESTS)
    whole = path.stat().st_size
    log.append([score(2)], DIGESTS)
    content = path.read_bytes()[: min(whole + cut, 2 * whole)]
    path.write_bytes(content)
    expected = [1, 2] if content.count(b"\n") == 2 else [1]
    assert list(log.read(DIGESTS)) == expected
    log.append([score(3)], DIGESTS)
    assert list(log.read(DIGESTS)) == [*expected, 3]


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    """The message names the setting."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="LABELNEXT_CACHE"):
        ScoreLog(tmp_path / "file" / "log").append([score(1)], DIGESTS)
