"""The score pool without Ray: the job over a runner that works in this process."""

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
from contract.errors import ConfigError, VersionNotFound
from contract.graph.masks import draw_masks
from server.__main__ import main
from server.pool.job import describe
from server.pool.job import score_pool as score
from server.pool.options import PoolOptions
from server.pool.shards import LOCK_FILE, Folder, PoolError, find_shards
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
    pytest.fail(f"{shards} were to be scored")


@pytest.fixture
def version(repository):
    return publish(repository)


@pytest.fixture
def options(tmp_path):
    return PoolOptions(input=str(tmp_path / "in"), output=str(tmp_path / "out"))


@pytest.fixture
def score_pool(settings, options):
    def score_with(run=run_here, setting=None, **others):
        return score(dataclasses.replace(settings, **setting or {}), dataclasses.replace(options, **others), run)

    return score_with


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
    def test_each_row_gets_what_the_passes_say(self, score_pool, version, write_shard, output, direction):
        write_shard("a.parquet")
        summary = score_pool(setting={"score": direction})
        table = output("a.parquet")
        found = table.to_pydict()
        model = TinyModel.draw(0)
        mean = model.passes(IMAGES, draw_masks(version, SITES, PASSES)).mean(axis=1)
        bald = expected_bald(model, version, IMAGES)
        share = bald / np.log(len(LABELS))
        assert found["id"] == [f"a.parquet:{row}" for row in range(len(IMAGES))]
        np.testing.assert_allclose(found["probabilities"], mean, atol=1e-5)
        np.testing.assert_allclose(found["bald"], bald, atol=1e-5)
        np.testing.assert_allclose(found["entropy"], -(mean * np.log(mean)).sum(1), atol=1e-5)
        np.testing.assert_allclose(found["score"], share if direction is Score.BALD else 1 - share, atol=1e-5)
        assert found["label"] == [LABELS[index] for index in mean.argmax(axis=1)]
        assert set(found["version"]) == {version}
        assert set(found["error"]) == set(found["detail"]) == {None}
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
        found = output("a.parquet").to_pydict()
        assert found["error"] == [None, "decode", "no_image", "no_image", "fetch", None]
        assert [detail is None for detail in found["detail"]] == [True, False, False, False, False, True]
        for name in ("score", "bald", "entropy", "label", "probabilities"):
            assert [value is None for value in found[name]] == [False, True, True, True, True, False]
        assert (summary["images"], summary["failed"]) == (6, 4)

    def test_every_shard_has_an_output_of_its_name(self, score_pool, version, write_shard, tmp_path):
        names = ["a.parquet", "2026/b.parquet", "2026/11/a.parquet"]
        for name in names:
            write_shard(name)
        (tmp_path / "in" / "_hidden").mkdir()
        (tmp_path / "in" / "_hidden" / "x.parquet").write_text("no data")
        (tmp_path / "in" / "notes.txt").write_text("no data")
        score_pool()
        found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
        assert found == {*names, LOCK_FILE}

    @pytest.mark.slow
    def test_a_shard_that_broke_off_is_not_there(self, score_pool, version, write_shard, tmp_path, monkeypatch):
        """What was written of it is under no name that a reader or the next run takes for a shard's."""
        write_shard("a.parquet")
        write = pq.write_table

        def break_off(*arguments, **options):
            write(*arguments, **options)
            raise KeyboardInterrupt

        monkeypatch.setattr(pq, "write_table", break_off)
        with pytest.raises(KeyboardInterrupt):
            score_pool()
        assert [path.parent.name for path in (tmp_path / "out").rglob("*.parquet")] == ["_partial"]
        monkeypatch.undo()
        assert score_pool()["images"] == 8
        assert score_pool(refuse_to_run)["skipped"] == 1
        assert not (tmp_path / "out" / "_partial").exists()

    @pytest.mark.slow
    def test_an_output_is_of_one_version_and_one_setting(self, score_pool, version, repository, write_shard, output):
        """A version that is published while the job runs changes nothing; who names the former goes on with it."""
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

    def test_a_folder_of_others_is_no_output(self, score_pool, version, write_shard, tmp_path):
        write_shard("a.parquet")
        (tmp_path / "out").mkdir()
        pq.write_table(pa.table({"x": range(8)}), tmp_path / "out" / "a.parquet")
        with pytest.raises(ConfigError, match="holds parquet files of others"):
            score_pool(refuse_to_run)

    def test_ids_keep_their_type_and_an_empty_shard_has_an_empty_output(self, score_pool, version, write_shard, output):
        write_shard("a.parquet", [], ids=pa.array([], pa.int64()))
        write_shard("b.parquet", REFERENCES[:2], ids=pa.array([2**40, None], pa.int64()))
        assert score_pool()["images"] == 2
        assert output("a.parquet").num_rows == 0
        assert output("b.parquet").schema.field("id").type == pa.int64()
        assert output("b.parquet")["id"].to_pylist() == [2**40, None]
        assert score_pool(refuse_to_run)["skipped"] == 2

    @pytest.mark.slow
    def test_a_shard_of_several_requests_keeps_its_order(self, score_pool, version, write_shard, output):
        write_shard("a.parquet", REFERENCES * 25)
        score_pool()
        found = output("a.parquet")
        assert found["id"].to_pylist() == [f"a.parquet:{row}" for row in range(200)]
        scores = np.array(found["score"]).reshape(25, 8)
        np.testing.assert_allclose(scores, np.broadcast_to(scores[0], scores.shape), atol=1e-6)


class TestShards:
    def test_present_shards_are_those_with_as_many_rows(self, options, write_shard, tmp_path):
        """An output of other length belongs to an input that was replaced, and is made anew."""
        for name in ("a.parquet", "b.parquet", "c.parquet"):
            write_shard(name)
        (tmp_path / "out").mkdir()
        pq.write_table(pa.table({"id": range(8)}), tmp_path / "out" / "a.parquet")
        pq.write_table(pa.table({"id": range(7)}), tmp_path / "out" / "b.parquet")
        shards, skipped = find_shards(options)
        assert [(shard.name, shard.rows) for shard in shards] == [("b.parquet", 8), ("c.parquet", 8)]
        assert skipped == 1

    def test_what_cannot_be_scored_is_told_before_anything_is(self, options, write_shard, tmp_path):
        with pytest.raises(ConfigError, match="expected a folder or an s3:// URI, got 'gopher://x'"):
            Folder("gopher://x")
        with pytest.raises(ConfigError, match=r"expected parquet files in .*in, found none"):
            find_shards(options)
        write_shard("a.parquet", data=[b"x"] * 8)
        missing = r"a.parquet has no column key, url, only id, image, data; .*--id and --column"
        with pytest.raises(ConfigError, match=missing):
            find_shards(dataclasses.replace(options, id="key", column="url"))
        with pytest.raises(ConfigError, match=r"column data of a.parquet must hold strings, .* binary"):
            find_shards(dataclasses.replace(options, column="data"))
        path = tmp_path / "in" / "a.parquet"
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(PoolError, match=r"a.parquet in .* cannot be read"):
            find_shards(options)

    def test_the_output_may_not_lie_in_the_input(self, options, write_shard, tmp_path):
        write_shard("a.parquet")
        for target in ("in", "in/scores", "x/../in"):
            with pytest.raises(ConfigError, match="would become part of the input"):
                find_shards(dataclasses.replace(options, output=str(tmp_path / target)))


@pytest.mark.slow
def test_a_pool_may_lie_in_a_bucket(score_pool, version, tmp_path_factory, monkeypatch):
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
        found = pq.read_table("pool/out/sub/b.parquet", filesystem=files, partitioning=None)
        assert set(found["version"].to_pylist()) == {version}
        assert score_pool(refuse_to_run, **folders)["skipped"] == 2
        listed = files.get_file_info(fs.FileSelector("pool/out", recursive=True))
        names = {each.path for each in listed if each.is_file}
        assert names == {f"pool/out/{name}" for name in (LOCK_FILE, "a.parquet", "sub/b.parquet")}
        with pytest.raises(PoolError, match="s3://elsewhere/out cannot be used"):
            Folder("s3://elsewhere/out").lock({"version": version})


def test_the_candidates_of_the_document_are_the_lowest_of_all(score_pool, version, write_shard, tmp_path, monkeypatch):
    """The program in docs/scale-out.md finds them shard by shard, and leaves out what has no score."""
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
        found = runpy.run_path("program.py")["lowest"].to_pylist()
        assert sorted((row["score"], row["id"]) for row in found) == ordered[:wanted]


def test_the_time_left_is_by_the_mean_rate():
    done = [ShardResult(images, 2, 1.0, 1.0, "fp32", 1.0) for images in (500, 2000)]
    said = describe(done, of=10_000, seconds=600)
    assert said == "2,500 of 10,000 images (25.0%), 4.2 images/s, 0:30:00 left, 4 failed"


class TestCommand:
    ARGUMENTS = ("score-pool", "--input", "in", "--output", "out")

    def test_without_ray_it_says_what_to_install(self, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.delitem(sys.modules, "server.pool.cluster", raising=False)
        assert main(self.ARGUMENTS) == 1
        assert "pip install -r requirements/score-pool.txt" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "wrong", [("--workers", "0"), ("--workers", "3-2"), ("--workers", "x"), ("--cpus", "0"), ("--batch", "-1")]
    )
    def test_numbers_that_cannot_be_meant_are_refused(self, wrong, capsys):
        with pytest.raises(SystemExit):
            main([*self.ARGUMENTS, *wrong])
        assert f"Invalid value for '{wrong[0]}'" in capsys.readouterr().err
