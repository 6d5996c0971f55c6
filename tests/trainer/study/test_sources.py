import multiprocessing
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from contract.errors import ConfigError, FetchError
from trainer.study.sources import Archive, Folder, open_source

CONTENTS = {f"some/{number}.bin": bytes([number]) * 5_000 for number in range(200)}


@pytest.fixture
def folder(tmp_path):
    for name, data in CONTENTS.items():
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(data)
    return tmp_path / "files"


@pytest.fixture
def archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "files.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in CONTENTS.items():
            opened.writestr(name, data)
    return tmp_path / "files.zip"


def right(source):
    """Say whether every file is what it should be, read by many threads."""
    with ThreadPoolExecutor(8) as executor:
        return list(executor.map(source.read, CONTENTS)) == list(CONTENTS.values())


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_files_are_found_and_read_by_many_threads(kind, request):
    """Threads that read at once each get their own file's bytes."""
    source = open_source(request.getfixturevalue(kind))
    assert right(source)
    assert source.holds("some/0.bin")
    assert not source.holds("some/0")
    assert not source.holds("some")


def exit_code_of_reading(source):
    """Read in this process until told to stop, and end it by saying whether all was right."""
    os._exit(0 if all(right(source) for _ in range(5)) else 1)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # which is what is tested
def test_forked_processes_read_one_zip_at_once(archive):
    """Parent and children share no place in the file."""
    source = open_source(archive)
    source.read("some/0.bin")
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=exit_code_of_reading, args=(source,)) for _ in range(2)]
    for child in children:
        child.start()
    rights = [right(source) for _ in range(5)]
    for child in children:
        child.join()
    assert all(rights)
    assert [child.exitcode for child in children] == [0, 0]


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_source_can_be_sent_to_another_process(kind, request):
    """What comes out of a pickle reads the same files."""
    assert right(pickle.loads(pickle.dumps(open_source(request.getfixturevalue(kind)))))  # noqa: S301  # ours


def test_an_archive_reads_below_a_folder_of_it(archive):
    """References begin behind the prefix."""
    assert Archive(archive, "some/").read("7.bin") == CONTENTS["some/7.bin"]


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_file_that_is_not_there_cannot_be_read(kind, request):
    """It is a fault of one image."""
    with pytest.raises(FetchError):
        open_source(request.getfixturevalue(kind)).read("none.bin")


def test_a_damaged_file_in_a_zip_cannot_be_read(archive):
    """The zip's own checksum finds it, and other files are read as before."""
    with zipfile.ZipFile(archive) as opened:
        start = opened.getinfo("some/9.bin").header_offset + len("some/9.bin") + 30
    data = bytearray(archive.read_bytes())
    data[start : start + 4] = b"\xff\xff\xff\xff"
    archive.write_bytes(data)
    source = open_source(archive)
    with pytest.raises(FetchError, match="make the zip again"):
        source.read("some/9.bin")
    assert source.read("some/8.bin") == CONTENTS["some/8.bin"]


class TestState:
    def test_follows_what_files_are_read(self, folder, archive):
        """Other references are another state."""
        for source in (Folder(folder), Archive(archive)):
            assert source.state(["some/0.bin"]) == source.state(["some/0.bin"])
            assert source.state(["some/0.bin"]) != source.state(["some/1.bin"])

    def test_of_a_folder_follows_the_size_of_a_file(self, folder):
        """A file that grew is another, even where its time of change was put back."""
        before = Folder(folder).state(list(CONTENTS))
        file = folder / "some" / "5.bin"
        times = file.stat()
        file.write_bytes(b"other")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert Folder(folder).state(list(CONTENTS)) != before

    def test_of_a_folder_follows_the_time_of_change_of_a_file(self, folder):
        """A file of the same size that is newer is another."""
        before = Folder(folder).state(list(CONTENTS))
        os.utime(folder / "some" / "5.bin", ns=(1, 1))
        assert Folder(folder).state(list(CONTENTS)) != before

    def test_of_a_folder_knows_files_that_are_gone(self, folder):
        """A missing file is no error here: reading says so."""
        before = Folder(folder).state(list(CONTENTS))
        (folder / "some" / "5.bin").unlink()
        assert Folder(folder).state(list(CONTENTS)) != before

    def test_of_a_zip_follows_the_zip(self, archive):
        """A zip that was made again is another."""
        before = Archive(archive).state(list(CONTENTS))
        os.utime(archive, ns=(1, 1))
        assert Archive(archive).state(list(CONTENTS)) != before

    def test_of_equal_names_elsewhere_is_another(self, folder, tmp_path):
        """Two folders may hold other images under the same names, sizes and times."""
        moved = folder.rename(tmp_path / "moved")
        os.utime(moved)
        there = Folder(moved).state(list(CONTENTS))
        moved.rename(folder)
        assert Folder(folder).state(list(CONTENTS)) != there


@pytest.mark.parametrize("data", [None, b"not a zip"], ids=["missing", "other"])
def test_what_is_neither_folder_nor_zip_is_refused(data, tmp_path):
    """The message says what to check."""
    path = tmp_path / "images"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"expected a folder or a zip of images, .*images is neither .*--images"):
        open_source(path)
