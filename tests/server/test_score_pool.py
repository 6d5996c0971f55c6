"""The score pool without Ray, in this process."""

import dataclasses
import json
import re
import runpy
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs
from pyarrow import parquet as pq

from bench.subjects.tiny_model import LABELS, PASSES, SITES, TinyModel, draw_images, expected_bald, publish
from contract.commands import parse
from contract.errors import ConfigError, VersionNotFound
from contract.graph.masks import draw_masks
from server.__main__ import COMMANDS, main
from server.pool.job import describe
from server.pool.job import score_pool as score
from server.pool.options import PoolOptions
from server.pool.shards import _PARTIAL, LOCK_FILE, Folder, PoolError, find_shards
from server.pool.worker import ShardResult, Worker
from server.settings import Score
from tests.buckets import running_store
from tests.server.conftest import to_data_uri

IMAGES = draw_images(8)
REFERENCES = [to_data_uri(image) for image in IMAGES]


def run_here(settings, options, shards):
    """Score all shards in this process, one after the other."""
    with closing(Worker(settings, options, options.version)) as worker:
        return [worker.score_shard(shard) for shard in shards]


def refuse_to_run(settings, options, shards):
    pytest.fail(f"unexpected shards to score: {shards}")


@pytest.fixture
def version(repository):
    return publish(repository)


@pytest.fixture
def options(tmp_path):
    return PoolOptions(input=str(tmp_path / "in"), output=str(tmp_path / "out"))


@pytest.fixture
def score_pool(settings, options):
    def score_pool(run=run_here, setting=None, **changed):
        return score(dataclasses.replace(settings, **setting or {}), dataclasses.replace(options, **changed), run)

    return score_pool


@pytest.fixture
def write_shard(tmp_path):
    def write(name, references=REFERENCES, ids=None, **columns):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = [f"{name}:{row}" for row in range(len(references))] if ids is None else ids
        pq.write_table(pa.table({"id": ids, "image": pa.array(references, pa.string()), **columns}), path)

    return write


@pytest.fixture
def output(tmp_path):
    return lambda name: pq.read_table(tmp_path / "out" / name)


class TestJob:
    @pytest.mark.slow
    @pytest.mark.parametrize("direction", Score)
    def test_scores_match_an_independent_computation(self, score_pool, version, write_shard, output, direction):
        write_shard("a.parquet")
        summary = score_pool(setting={"score": direction})
        table = output("a.parquet")
        columns = table.to_pydict()
        model = TinyModel.draw(0)
        mean = model.passes(IMAGES, draw_masks(version, SITES, PASSES)).mean(axis=1)
        bald = expected_bald(model, version, IMAGES)
        share = bald / np.log(len(LABELS))
        assert columns["id"] == [f"a.parquet:{row}" for row in range(len(IMAGES))]
        np.testing.assert_allclose(columns["probabilities"], mean, atol=1e-5)
        np.testing.assert_allclose(columns["bald"], bald, atol=1e-5)
        np.testing.assert_allclose(columns["entropy"], -(mean * np.log(mean)).sum(1), atol=1e-5)
        np.testing.assert_allclose(columns["score"], share if direction is Score.BALD else 1 - share, atol=1e-5)
        assert columns["label"] == [LABELS[index] for index in mean.argmax(axis=1)]
        assert set(columns["version"]) == {version}
        assert set(columns["error"]) == set(columns["detail"]) == {None}
        assert json.loads(table.schema.metadata[b"labels"]) == list(LABELS)
        assert table.schema.metadata[b"precision"] == b"fp32"
        seconds, rate, peak = (summary.pop(name) for name in ("seconds", "images_per_s", "worker_peak_rss_mb"))
        assert rate == pytest.approx(len(IMAGES) / seconds, rel=0.1)
        assert 0 <= summary.pop("worker_seconds") <= seconds
        assert summary.pop("core_seconds") >= 0
        assert peak > 10
        counts = {"images": 8, "failed": 0, "shards": 1, "skipped": 0}
        assert summary == {**counts, "version": version, "precisions": ["fp32"]}

    def test_a_failed_image_keeps_its_row(self, score_pool, version, write_shard, output):
        write_shard(
            "a.parquet", [REFERENCES[0], "data:image/png;base64,AAAA", None, "", "ftp://x/y.png", REFERENCES[1]]
        )
        summary = score_pool()
        columns = output("a.parquet").to_pydict()
        assert columns["error"] == [None, "decode", "no_image", "no_image", "fetch", None]
        assert [detail is None for detail in columns["detail"]] == [True, False, False, False, False, True]
        for name in ("score", "bald", "entropy", "label", "probabilities"):
            assert [value is None for value in columns[name]] == [False, True, True, True, True, False]
        assert (summary["images"], summary["failed"]) == (6, 4)

    def test_each_shard_has_an_output_of_the_same_name(self, score_pool, version, write_shard, tmp_path):
        names = ["a.parquet", "2026/b.parquet", "2026/11/a.parquet"]
        for name in names:
            write_shard(name)
        (tmp_path / "in" / "_hidden").mkdir()
        (tmp_path / "in" / "_hidden" / "x.parquet").write_text("not parquet")
        (tmp_path / "in" / "notes.txt").write_text("not parquet")
        score_pool()
        files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
        assert files == {*names, LOCK_FILE}

    @pytest.mark.slow
    def test_an_interrupted_shard_has_no_output(self, score_pool, version, write_shard, tmp_path, monkeypatch):
        """Its partial file is ignored by readers and the next run."""
        write_shard("a.parquet")
        write = pq.write_table

        def interrupt(*arguments, **options):
            write(*arguments, **options)
            raise KeyboardInterrupt

        monkeypatch.setattr(pq, "write_table", interrupt)
        with pytest.raises(KeyboardInterrupt):
            score_pool()
        assert [path.parent.name for path in (tmp_path / "out").rglob("*.parquet")] == ["_partial"]
        monkeypatch.undo()
        assert score_pool()["images"] == 8
        assert score_pool(refuse_to_run)["skipped"] == 1
        assert not (tmp_path / "out" / "_partial").exists()

    @pytest.mark.slow
    def test_only_a_shard_that_cannot_be_read_is_reported_as_such(
        self, score_pool, version, write_shard, tmp_path, monkeypatch
    ):
        write_shard("a.parquet")
        path = tmp_path / "in" / "a.parquet"
        content = path.read_bytes()
        path.write_bytes(b"PAR1" + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
        with pytest.raises(PoolError, match=r"a\.parquet in .* cannot be read; write it again"):
            score_pool()
        path.write_bytes(content)
        monkeypatch.setattr("server.pool.worker.make_row", lambda *_: {"score": "not a number"})
        with pytest.raises(pa.ArrowInvalid):
            score_pool()

    @pytest.mark.slow
    def test_an_output_has_one_version_and_one_setting(self, score_pool, version, repository, write_shard, output):
        """A version published during the job is not used; a later job can continue with the old version."""
        write_shard("a.parquet")

        def publish_and_run(*arguments):
            publish(repository, seed=1)
            return run_here(*arguments)

        assert score_pool(publish_and_run)["version"] == version
        assert set(output("a.parquet")["version"].to_pylist()) == {version}
        write_shard("b.parquet")
        with pytest.raises(ConfigError, match=f"{version}.*{repository.current()}.*--version"):
            score_pool(refuse_to_run)
        with pytest.raises(VersionNotFound):
            score_pool(refuse_to_run, version="20260102T030405678Z-0a1b2c")
        for name, value in (("passes", 5), ("score", Score.BALD)):
            with pytest.raises(ConfigError, match=name):
                score_pool(refuse_to_run, {name: value}, version=version)
        summary = score_pool(version=version)
        assert [summary[name] for name in ("version", "images", "shards", "skipped")] == [version, 8, 1, 1]

    def test_a_folder_with_other_parquet_files_is_refused_as_output(self, score_pool, version, write_shard, tmp_path):
        write_shard("a.parquet")
        (tmp_path / "out").mkdir()
        pq.write_table(pa.table({"x": range(8)}), tmp_path / "out" / "a.parquet")
        with pytest.raises(ConfigError, match=r"has parquet files but no _score-pool\.json"):
            score_pool(refuse_to_run)

    def test_ids_keep_their_type_and_empty_shards_give_empty_outputs(self, score_pool, version, write_shard, output):
        write_shard("a.parquet", [], ids=pa.array([], pa.int64()))
        write_shard("b.parquet", REFERENCES[:2], ids=pa.array([2**40, None], pa.int64()))
        assert score_pool()["images"] == 2
        assert output("a.parquet").num_rows == 0
        assert output("b.parquet").schema.field("id").type == pa.int64()
        assert output("b.parquet")["id"].to_pylist() == [2**40, None]
        assert score_pool(refuse_to_run)["skipped"] == 2

    @pytest.mark.slow
    def test_a_large_shard_keeps_its_order(self, score_pool, version, write_shard, output):
        write_shard("a.parquet", REFERENCES * 25)
        score_pool()
        table = output("a.parquet")
        assert table["id"].to_pylist() == [f"a.parquet:{row}" for row in range(200)]
        scores = np.array(table["score"]).reshape(25, 8)
        np.testing.assert_allclose(scores, np.broadcast_to(scores[0], scores.shape), atol=1e-6)


class TestShards:
    def test_outputs_with_another_number_of_rows_are_scored_again(self, options, write_shard, tmp_path):
        """Their input was replaced."""
        for name in ("a.parquet", "b.parquet", "c.parquet"):
            write_shard(name)
        (tmp_path / "out").mkdir()
        pq.write_table(pa.table({"id": range(8)}), tmp_path / "out" / "a.parquet")
        pq.write_table(pa.table({"id": range(7)}), tmp_path / "out" / "b.parquet")
        shards, skipped = find_shards(options)
        assert [(shard.name, shard.rows) for shard in shards] == [("b.parquet", 8), ("c.parquet", 8)]
        assert skipped == 1

    def test_invalid_inputs_are_refused_before_scoring(self, options, write_shard, tmp_path):
        with pytest.raises(ConfigError, match="expected a folder or an s3:// URI, got 'gopher://x'"):
            Folder("gopher://x")
        with pytest.raises(ConfigError, match=r"expected parquet files in .*in, found none"):
            find_shards(options)
        write_shard("a.parquet", data=[b"x"] * 8)
        missing = r"a.parquet has no column key, url, only id, image, data; .*--id and --column"
        with pytest.raises(ConfigError, match=missing):
            find_shards(dataclasses.replace(options, id="key", column="url"))
        with pytest.raises(ConfigError, match=r"column data of a.parquet must contain strings, .* got binary"):
            find_shards(dataclasses.replace(options, column="data"))
        path = tmp_path / "in" / "a.parquet"
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(PoolError, match=r"a.parquet in .* cannot be read"):
            find_shards(options)

    def test_an_output_in_the_input_is_refused(self, options, write_shard, tmp_path):
        write_shard("a.parquet")
        for target in ("in", "in/scores", "x/../in"):
            with pytest.raises(ConfigError, match="lies in the input"):
                find_shards(dataclasses.replace(options, output=str(tmp_path / target)))


def test_unfinished_files_that_cannot_be_removed_are_an_error(tmp_path):
    (tmp_path / _PARTIAL).write_bytes(b"not a folder")
    with pytest.raises(PoolError, match=r"unfinished files in .* cannot be removed"):
        Folder(str(tmp_path)).remove_partial()


@pytest.mark.slow
def test_input_and_output_may_be_in_a_bucket(score_pool, version, tmp_path_factory, monkeypatch):
    with running_store(tmp_path_factory.mktemp("moto")) as store:
        for name, value in {**store.environment, "AWS_ENDPOINT_URL": store.url}.items():
            monkeypatch.setenv(name, value)
        store.create("pool")
        files = fs.FileSystem.from_uri("s3://pool")[0]
        for name in ("a", "sub/b"):
            table = pa.table({"id": range(len(REFERENCES)), "image": REFERENCES})
            pq.write_table(table, f"pool/in/{name}.parquet", filesystem=files)
        folders = {"input": "s3://pool/in", "output": "s3://pool/out"}
        assert score_pool(**folders)["images"] == 16
        table = pq.read_table("pool/out/sub/b.parquet", filesystem=files, partitioning=None)
        assert set(table["version"].to_pylist()) == {version}
        assert score_pool(refuse_to_run, **folders)["skipped"] == 2
        entries = files.get_file_info(fs.FileSelector("pool/out", recursive=True))
        names = {entry.path for entry in entries if entry.is_file}
        assert names == {f"pool/out/{name}" for name in (LOCK_FILE, "a.parquet", "sub/b.parquet")}
        with pytest.raises(PoolError, match="s3://elsewhere/out cannot be used"):
            Folder("s3://elsewhere/out").lock({"version": version})


def test_the_documented_program_selects_the_lowest_scores(score_pool, version, write_shard, tmp_path, monkeypatch):
    """The program in docs/scale-out.md skips rows without a score."""
    document = (Path(__file__).parents[2] / "docs" / "scale-out.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    write_shard("a.parquet", [*REFERENCES[:3], None])
    write_shard("b/c.parquet", REFERENCES[3:])
    score_pool(output=str(tmp_path / "scores"))
    rows = [row for name in ("a", "b/c") for row in pq.read_table(tmp_path / "scores" / f"{name}.parquet").to_pylist()]
    ordered = sorted((row["score"], row["id"]) for row in rows if row["score"] is not None)
    monkeypatch.chdir(tmp_path)
    for wanted in (5, 100):
        (tmp_path / "program.py").write_text(program.replace("100_000", str(wanted)))
        lowest = runpy.run_path("program.py")["lowest"].to_pylist()
        assert sorted((row["score"], row["id"]) for row in lowest) == ordered[:wanted]


def test_describe_reports_progress_and_time_left():
    done = [ShardResult(images, 2, 1.0, 1.0, "fp32", 1.0) for images in (500, 2000)]
    progress = describe(done, of=10_000, seconds=600)
    assert progress == "2,500 of 10,000 images (25.0%), 4.2 images/s, 0:30:00 left, 4 failed"


class TestCommand:
    ARGUMENTS = ("score-pool", "--input", "in", "--output", "out")

    def test_missing_ray_is_an_error_that_says_what_to_install(self, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.delitem(sys.modules, "server.pool.cluster", raising=False)
        assert main(self.ARGUMENTS) == 1
        assert "pip install -r requirements/score-pool.txt" in capsys.readouterr().err

    @pytest.mark.parametrize(("text", "workers"), [("3", (3, 3)), ("2-8", (2, 8))])
    def test_workers_are_a_number_or_a_range(self, text, workers):
        _, (options,) = parse("server", COMMANDS, [*self.ARGUMENTS, "--workers", text], about="")
        assert options.workers == workers

    @pytest.mark.parametrize(
        "option", [("--workers", "0"), ("--workers", "3-2"), ("--workers", "x"), ("--cpus", "0"), ("--batch", "-1")]
    )
    def test_invalid_numbers_are_refused(self, option, capsys):
        with pytest.raises(SystemExit):
            main([*self.ARGUMENTS, *option])
        assert f"Invalid value for '{option[0]}'" in capsys.readouterr().err
