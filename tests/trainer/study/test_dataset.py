import hashlib
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contract.errors import ConfigError, FetchError, LabelError
from tests.trainer.small import COLOURS, write_folders
from trainer.labels.dataset import split
from trainer.labels.sources import from_folder
from trainer.study.dataset import long_tail, read_pool


@pytest.fixture
def folder(tmp_path):
    return write_folders(tmp_path / "colours", each=8)


def zipped(folder, *, below="", extra=()):
    """Write all files of a folder to a zip next to it, with extra empty files."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*"), reverse=True):
            archive.write(file, below + file.relative_to(folder).as_posix())
        for name in extra:
            archive.writestr(name, b"")
    return path


def rows_of(pool):
    """Return reference, label and split of each image."""
    labels = [pool.classes[target] for target in pool.targets]
    return list(zip(pool.references, labels, pool.test.tolist(), strict=True))


def contents(pool):
    """Return the digest of each image's file, read by several threads."""
    with ThreadPoolExecutor(8) as executor:
        return [hashlib.sha256(data).hexdigest() for data in executor.map(pool.read, range(len(pool.references)))]


class TestClassFolders:
    def test_labels_are_folder_names_and_test_set_is_stratified(self, folder, monkeypatch):
        pool = read_pool(folder, None)
        assert pool.name == "colours"
        assert pool.classes == tuple(sorted(COLOURS))
        assert pool.targets.dtype == np.int64
        assert [str(folder / each) for each in pool.references] == [
            each.reference for each in from_folder(folder).images
        ]
        assert all(each.startswith(f"{label}/") for each, label, _ in rows_of(pool))
        assert np.bincount(pool.targets[pool.test]).tolist() == [2, 2, 2]
        assert np.flatnonzero(pool.test).tolist() == split(pool.targets, fraction=0.25, seed=0)[1].tolist()
        assert read_pool(folder, None, test_share=0.5).test.sum() == 12
        kept = np.arange(len(pool.targets)) % 3 != 1
        assert rows_of(pool.take(kept)) == [row for row, keep in zip(rows_of(pool), kept, strict=True) if keep]
        monkeypatch.chdir(folder)
        here = read_pool(Path("."), None)
        assert (here.name, rows_of(here), contents(here)) == (pool.name, rows_of(pool), contents(pool))

    @pytest.mark.parametrize("below", ["", "inside/"])
    def test_zip_equals_its_folder(self, folder, below):
        extra = (".DS_Store", f"__MACOSX/{below}blue/._000.png", f"{below}blue/", f"{below}empty/")
        pool, other = read_pool(folder, None), read_pool(zipped(folder, below=below, extra=extra), None)
        assert rows_of(other) == rows_of(pool)
        assert (other.name, other.classes) == (pool.name, pool.classes)
        assert contents(other) == contents(pool)

    def test_copies_are_in_the_same_part(self, folder):
        for file in sorted((folder / "red").iterdir())[1:]:
            shutil.copyfile(file, file.with_name(f"{file.stem} copy.png"))
        pool = read_pool(folder, None)
        sides = {}
        for digest, test in zip(contents(pool), pool.test.tolist(), strict=True):
            sides.setdefault(digest, set()).add(test)
        assert all(len(side) == 1 for side in sides.values())
        assert pool.test.sum() > 0

    def test_unreadable_images_are_not_copies_of_each_other(self, folder):
        """Decoding reports them later."""
        archive = zipped(folder)
        with zipfile.ZipFile(archive) as opened:
            starts = [each.header_offset + 30 + len(each.filename) for each in opened.infolist()]
        data = bytearray(archive.read_bytes())
        for start in starts:
            data[start] ^= 0xFF  # so that the checksum differs
        archive.write_bytes(data)
        pool = read_pool(archive, None)
        with pytest.raises(FetchError, match="create the zip again"):
            pool.read(0)
        assert np.bincount(pool.targets[pool.test]).tolist() == [2, 2, 2]


@pytest.mark.parametrize("change", ["size", "time", "gone", "moved", "zip", "fewer", "order"])
def test_state_changes_with_the_files(folder, tmp_path, change):
    """In a folder and in a zip; independent of labels. A deleted file is not an error."""
    path = zipped(folder) if change == "zip" else folder
    pool = read_pool(path, None)
    assert pool.state() == replace(read_pool(path, None), targets=pool.targets[::-1], test=~pool.test, name="").state()
    before, file = pool.state(), folder / pool.references[5]
    times = file.stat()
    match change:
        case "size":
            file.write_bytes(b"other")
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        case "time":
            os.utime(file, ns=(1, 1))
        case "gone":
            file.unlink()
        case "moved":
            pool = replace(pool, root=folder.rename(tmp_path / "moved"))
        case "zip":
            os.utime(path, ns=(1, 1))
        case "fewer":
            pool = replace(pool, references=pool.references[1:])
        case "order":
            pool = replace(pool, references=pool.references[::-1])
    assert pool.state() != before


def write_manifest(folder, lines, *, header="path,label,split", encoding="utf-8"):
    path = folder.parent / "manifest.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding=encoding)
    return path


def lines_of(folder, *, splits=("pool", "test", "pool", "train")):
    """Return a line for each image, with alternating splits."""
    files = sorted(folder.rglob("*.png"))
    return [
        f"{file.relative_to(folder).as_posix()},{file.parent.name},{splits[number % len(splits)]}"
        for number, file in enumerate(files)
    ]


class TestManifest:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_reads_labels_and_splits(self, folder, encoding):
        lines = [line.replace(",blue,", ",bleu é,") for line in lines_of(folder)]
        pool = read_pool(folder, write_manifest(folder, lines, encoding=encoding))
        expected = [(path, label, side == "test") for path, label, side in (line.split(",") for line in lines)]
        assert rows_of(pool) == expected
        assert pool.classes == ("bleu é", "green", "red")

    @pytest.mark.parametrize("header", ["path,label", "path,label,split"])
    def test_without_test_rows_holds_out_a_share(self, folder, header):
        lines = [line.removesuffix("pool").rstrip(",") for line in lines_of(folder, splits=("pool",))]
        pool = read_pool(folder, write_manifest(folder, lines, header=header))
        assert rows_of(pool) == rows_of(read_pool(folder, None))

    def test_ignores_other_columns_spaces_and_dots(self, folder):
        lines = ["7, ./{} ,{} , {}".format(*line.replace("test", "Test").split(",")) for line in lines_of(folder)]
        pool = read_pool(folder, write_manifest(folder, [*lines, ""], header="size,path,label,split"))
        assert rows_of(pool) == rows_of(read_pool(folder, write_manifest(folder, lines_of(folder))))

    @pytest.mark.parametrize(
        ("added", "message"),
        [
            (["../blue/0.png,blue,"], "1 of 25 are outside of it, first ../blue/0.png"),
            (["blue/../../x.png,blue,", "/etc/x.png,red,"], r"2 of 26 are outside of it, first blue/\.\./"),
            (["blue/none.png,blue,", "none.png,red,"], "2 of 26 do not exist, first blue/none.png"),
            (["blue,blue,"], "1 of 25 do not exist, first blue"),
            ([",red,"], "1 rows lack one, first row 25"),
            (["red/002.png,,"], "1 rows lack one, first row 25"),
            (["red/002.png"], "1 rows lack one, first row 25"),
            (["./blue/000.png,red,test"], "1 of 25 occur more than once, first blue/000.png"),
        ],
    )
    @pytest.mark.parametrize("kind", ["folder", "zip"])
    def test_error_counts_faulty_rows_and_names_the_first(self, folder, added, message, kind):
        manifest = write_manifest(folder, lines_of(folder) + added)
        with pytest.raises(LabelError, match=message):
            read_pool(folder if kind == "folder" else zipped(folder), manifest)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (None, "cannot be read: No such file or directory; check --manifest"),
            (b"file,label\n", "missing path; its first line is file,label"),
            (b"path;label\n", "missing path and label; its first line is path;label"),
            (b"", "missing path and label; its first line is empty"),
            (b"path,label\n\xff\xfe,red\n", "a CSV file in UTF-8"),
            (b"path,label\nx\x00,red\n", None),
            (b"path,label\n", "at least 2 classes"),
        ],
    )
    def test_rejects_invalid_manifests(self, folder, data, message):
        path = folder.parent / "manifest.csv"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(LabelError, match=message):
            read_pool(folder, path)

    @pytest.mark.parametrize(("side", "figures"), [("test", "0 and 8"), ("pool", "8 and 0")])
    def test_rejects_classes_in_one_part_only(self, folder, side, figures):
        other = [line for line in lines_of(folder) if "green/" not in line]
        lines = other + [line for line in lines_of(folder, splits=(side,)) if "green/" in line]
        with pytest.raises(LabelError, match=f"'green' has {figures}"):
            read_pool(folder, write_manifest(folder, lines))


@pytest.mark.parametrize("data", [None, b"not a zip"], ids=["missing", "other"])
def test_rejects_other_files_than_zips(data, tmp_path):
    path = tmp_path / "images"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"expected a folder or a zip of images, .*images is neither .*--images"):
        read_pool(path, tmp_path / "none.csv")


POOLS = st.integers(1, 80).flatmap(
    lambda count: st.tuples(
        hnp.arrays(np.int64, count, elements=st.integers(0, 5)), hnp.arrays(np.bool_, count, elements=st.booleans())
    )
)


class TestLongTail:
    @given(POOLS, st.floats(1, 1000))
    def test_class_sizes_follow_the_formula(self, pool, ratio):
        targets, eligible = pool
        kept = long_tail(targets, eligible, ratio)
        assert not (kept & ~eligible).any()
        counts = np.bincount(targets[eligible], minlength=6)
        order = sorted(np.flatnonzero(counts), key=lambda label: (-counts[label], label))
        expected = np.zeros(6, int)
        for place, label in enumerate(order):
            size = counts.max() * ratio ** (-place / (len(order) - 1)) if len(order) > 1 else counts.max()
            expected[label] = min(max(round(size), 1), counts[label])
        assert np.bincount(targets[kept], minlength=6).tolist() == expected.tolist()

    @given(POOLS, st.floats(1, 100), st.floats(1, 100))
    def test_longer_tail_is_a_subset(self, pool, first, second):
        longer, shorter = (long_tail(*pool, ratio) for ratio in sorted((first, second), reverse=True))
        assert not (longer & ~shorter).any()
