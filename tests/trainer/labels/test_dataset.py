import base64
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from bench.harness.hosts import host, reply
from contract.errors import ConfigError, LabelError
from contract.images.fetch import Fetcher, FetchSettings
from contract.images.preprocess import decode_image
from contract.versions.manifest import InputSpec
from trainer.labels.dataset import load_pixels, split, strata
from trainer.labels.image_cache import ImageCache
from trainer.labels.sources import LabelledImage, LabelledPool, from_folder
from trainer.settings import Environment

SPEC = InputSpec(8, 12)


def png(shade):
    """A PNG of one grey."""
    buffer = io.BytesIO()
    Image.new("RGB", (20, 30), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(shade):
    return f"data:image/png;base64,{base64.b64encode(png(shade)).decode()}"


def pool_of(*references):
    """A pool of Label Studio's with one image after another, classes in turn."""
    images = [LabelledImage(each, (number % 2,), number) for number, each in enumerate(references)]
    return LabelledPool(("a", "b"), tuple(images), "label", "a test", {})


def conditional(body):
    """An answer under an ETag of the body, and 304 to who knows it."""
    etag = f'"{hashlib.sha256(body).hexdigest()}"'

    def answer(handler, request):
        known = request.headers.get("If-None-Match") == etag
        reply(b"" if known else body, status=304 if known else 200, etag=etag)(handler, request)

    return answer


def downloads(studio):
    """How many requests were for a file, and not for whether it has changed."""
    return sum("If-None-Match" not in request.headers for request in studio.requests)


@pytest.fixture
def studio():
    with host() as each:
        for number in range(4):
            each.answers[f"/data/upload/1/{number}.png"] = conditional(png(number))
        yield each


@pytest.fixture
def fetcher(studio):
    with Fetcher(FetchSettings(label_studio_url=studio.url)) as each:
        yield each


def write(root, files):
    """Write class folders: `files` are bytes, or a shade of grey, by path."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(data) if isinstance(data, int) else data)
    return root


def load(root, pool=None, **options):
    """Return the pixels of class folders."""
    cache = ImageCache(root / "cache", max_bytes=2**20)
    return load_pixels(pool or from_folder(root), spec=SPEC, fetcher=None, cache=cache, **options)


class TestFolders:
    def test_pixels_come_in_the_order_of_the_pool(self, tmp_path):
        """Images, targets and references of one index belong together."""
        pool = from_folder(write(tmp_path, {f"{'ab'[number % 2]}/{number:02}.png": number for number in range(20)}))
        pixels = load(tmp_path, pool)
        assert pixels.images.shape == (20, 8, 12, 3)
        assert pixels.references == tuple(image.reference for image in pool.images)
        for image, target, reference in zip(pixels.images, pixels.targets, pixels.references, strict=True):
            number = int(Path(reference).stem)
            assert image.tobytes() == decode_image(png(number), SPEC).tobytes()
            assert target == number % 2
        assert not (tmp_path / "cache").exists()

    def test_unreadable_images_are_left_out_and_named(self, tmp_path):
        """What can be read stays in order; a file may have gone while training starts."""
        files = {"a/1.png": b"not an image", "a/2.png": 2, "a/3.png": png(3)[:40], "a/4.png": 1, "b/5.png": 5}
        pool = from_folder(write(tmp_path, files))
        (tmp_path / "a" / "4.png").unlink()
        pixels = load(tmp_path, pool)
        assert [int(image[0, 0, 0]) for image in pixels.images] == [2, 5]
        assert pixels.targets.tolist() == [0, 1]
        assert [each.name for each in pixels.unreadable] == [
            str(tmp_path / "a" / f"{number}.png") for number in (1, 3, 4)
        ]
        assert all(each.reason for each in pixels.unreadable)
        gone = "the file cannot be read: No such file or directory; check that it is there and readable"
        assert pixels.unreadable[2].reason == gone

    def test_the_largest_image_is_a_setting(self, tmp_path):
        """What is larger is left out, and the reason names the setting that allows it."""
        write(tmp_path, {"a/1.png": 1, "b/3.png": 1})
        Image.new("L", (1100, 1000)).save(tmp_path / "a" / "2.png")
        for most, unreadable in ((1, 1), (2, 0)):
            environment = Environment.read({"LABELNEXT_MAX_MEGAPIXELS": str(most)})
            pixels = load(tmp_path, max_megapixels=environment.max_megapixels)
            assert len(pixels.unreadable) == unreadable
            assert all("raise LABELNEXT_MAX_MEGAPIXELS" in each.reason for each in pixels.unreadable)

    def test_copies_are_one_group(self, tmp_path):
        """Equal pixels are recognised, whatever their names and classes are, and however they are stored."""
        write(tmp_path, {"a/1.png": 1, "a/2.png": 2, "a/3.png": 1, "b/4.png": 1, "b/5.png": 5})
        with Image.open(tmp_path / "a" / "2.png") as image:
            image.save(tmp_path / "b" / "6.bmp")
        pixels = load(tmp_path)
        assert pixels.groups.tolist() == [0, 1, 0, 0, 4, 1]
        assert len(set(pixels.digests)) == 4

    def test_an_unreadable_class_is_refused(self, tmp_path):
        """One readable class is as little to learn from as one labelled one."""
        write(tmp_path, {"a/1.png": 1, "a/2.png": 2, "b/3.png": b"broken"})
        with pytest.raises(
            LabelError, match=r"got 2 images of 1; 1 are unreadable, the first being .*3\.png: expected"
        ):
            load(tmp_path)


class TestSeveralLabels:
    def test_targets_mark_the_labels_that_hold(self, tmp_path):
        """A row for each readable image, a column for each label, and the tasks' numbers beside them."""
        held = [(0, 2), (), (1,), (2,)]
        uris = [*map(data_uri, range(3)), "data:,no"]
        images = [
            LabelledImage(uri, labels, 10 + row) for row, (uri, labels) in enumerate(zip(uris, held, strict=True))
        ]
        pool = LabelledPool(("a", "b", "c"), tuple(images), "label", "a test", {}, multiple=True)
        with Fetcher(FetchSettings()) as fetcher:
            pixels = load_pixels(pool, spec=SPEC, fetcher=fetcher, cache=ImageCache(tmp_path, max_bytes=2**20))
        assert pixels.targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
        assert pixels.targets.dtype == np.uint8
        assert pixels.task_ids.tolist() == [10, 11, 12]
        assert len(pixels.unreadable) == 1

    def test_the_class_of_an_image_is_its_rarest_label(self):
        """So that what is rare is on both sides; images without a label are a class of their own."""
        targets = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], np.uint8)
        assert strata(targets).tolist() == [1, 0, 2, 3]
        assert strata(np.array([[1, 1], [0, 0]], np.uint8)).tolist() == [0, 2]
        assert strata(np.array([2, 0])).tolist() == [2, 0]

    @given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 6)), elements=st.integers(0, 1)))
    def test_what_two_images_have_as_their_rarest_is_on_both_sides(self, targets):
        """Nothing is lost, and nothing is on both sides."""
        train, validation = split(targets, fraction=0.2, seed=0)
        assert sorted([*train, *validation]) == list(range(len(targets)))
        classes, counts = np.unique(strata(targets), return_counts=True)
        assert set(strata(targets)[train]) == set(classes)
        assert set(strata(targets)[validation]) == set(classes[counts > 1])


class TestDownloads:
    REFERENCES = tuple(f"/data/upload/1/{number}.png" for number in range(4))

    def load(self, fetcher, cache, references=REFERENCES, *, max_bytes=2**20):
        images = ImageCache(cache, max_bytes=max_bytes)
        return load_pixels(pool_of(*references), spec=SPEC, fetcher=fetcher, cache=images)

    def test_images_that_have_not_changed_are_downloaded_once(self, studio, fetcher, tmp_path):
        """The second training asks whether they have, and gets no body."""
        first = self.load(fetcher, tmp_path / "new" / "cache")
        second = self.load(fetcher, tmp_path / "new" / "cache")
        assert (len(studio.requests), downloads(studio)) == (8, 4)
        assert first.images.tobytes() == second.images.tobytes()
        assert [int(image[0, 0, 0]) for image in second.images] == [0, 1, 2, 3]

    def test_an_image_that_was_replaced_is_seen(self, studio, fetcher, tmp_path):
        """Under the same address there is another file; the others are not downloaded again."""
        self.load(fetcher, tmp_path)
        studio.answers[self.REFERENCES[2]] = conditional(png(200))
        for _ in range(2):
            assert [int(image[0, 0, 0]) for image in self.load(fetcher, tmp_path).images] == [0, 1, 200, 3]
        assert len(studio.asked(self.REFERENCES[2])) == 3

    def test_what_cannot_be_asked_for_changes_is_downloaded_anew(self, studio, fetcher, tmp_path):
        """Its host sends neither ETag nor Last-Modified, so that nothing is kept."""
        for shade in (50, 60):
            studio.serve(self.REFERENCES[0], png(shade))
            assert int(self.load(fetcher, tmp_path).images[0, 0, 0, 0]) == shade
        assert len(list(tmp_path.iterdir())) == 3

    def test_what_is_no_image_is_not_kept(self, studio, fetcher, tmp_path):
        """A page that says sorry with status 200 is asked for again next time."""
        studio.serve(self.REFERENCES[3], b"<html>Sign in</html>")
        assert len(self.load(fetcher, tmp_path).unreadable) == 1
        studio.serve(self.REFERENCES[3], png(3))
        assert len(self.load(fetcher, tmp_path).images) == 4

    def test_two_label_studios_do_not_share_entries(self, fetcher, tmp_path):
        """Both may have an upload of the same name."""
        self.load(fetcher, tmp_path)
        with host() as other, Fetcher(FetchSettings(label_studio_url=other.url)) as others:
            for number, reference in enumerate(self.REFERENCES):
                other.answers[reference] = conditional(png(100 + number))
            assert [int(image[0, 0, 0]) for image in self.load(others, tmp_path).images] == [100, 101, 102, 103]

    def test_unreadable_images_are_named_without_their_query(self, studio, fetcher, tmp_path):
        """Signed URLs end up in logs and reports."""
        pixels = self.load(fetcher, tmp_path, (*self.REFERENCES, "/data/upload/1/gone.png?signature=hidden"))
        ((name, reason, _),) = pixels.unreadable
        assert name == "/data/upload/1/gone.png"
        assert "404" in reason
        assert "hidden" not in reason
        assert len(pixels.images) == 4

    def test_references_without_a_host_are_not_cached(self, fetcher, tmp_path):
        """A data URI is its own copy."""
        assert len(self.load(fetcher, tmp_path / "cache", [data_uri(1), data_uri(2)]).images) == 2
        assert not (tmp_path / "cache").exists()

    def test_a_cache_that_cannot_be_written_is_said(self, fetcher, tmp_path):
        """The message names the setting."""
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ConfigError, match="LABELNEXT_CACHE"):
            self.load(fetcher, tmp_path / "file" / "cache")

    def test_a_fetcher_is_needed(self, tmp_path):
        """Tasks refer to images that no path leads to."""
        with pytest.raises(ValueError, match="expected a fetcher"):
            self.load(None, tmp_path)


class TestSplit:
    def test_the_fraction_holds_for_each_class(self):
        """A fifth of each, not of all."""
        targets = np.repeat([0, 1, 2], [100, 10, 5])
        _, validation = split(targets, fraction=0.2, seed=3)
        assert np.bincount(targets[validation]).tolist() == [20, 2, 1]

    def test_the_seed_decides(self):
        """The same seed gives the same split; another gives another."""
        targets = np.repeat([0, 1], 50)
        first, again, other = (split(targets, fraction=0.2, seed=seed)[1].tolist() for seed in (1, 1, 2))
        assert first == again != other

    def test_adding_to_one_class_does_not_move_another(self):
        """So that rounds of active learning validate on what they validated on before, where they can."""
        targets = np.repeat([0, 1], [20, 20])
        before = split(targets, fraction=0.2, seed=1)[1]
        after = split(np.append(targets, [1] * 10), fraction=0.2, seed=1)[1]
        assert before[before < 20].tolist() == after[after < 20].tolist()

    def test_conflicting_copies_are_trained_on(self):
        """An image with two labels is kept, but measures nothing."""
        targets, groups = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 0, 4, 5])
        _, validation = split(targets, fraction=0.5, seed=0, groups=groups)
        assert not {0, 3} & set(validation.tolist())
        assert len(validation) == 4 - 2

    @given(
        hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 4)),
        st.floats(0.01, 0.99),
        st.integers(0, 2**31),
        st.data(),
    )
    def test_no_split_loses_or_leaks(self, targets, fraction, seed, data):
        """Each image is on one side, no group on both, and a class of two groups of its own on both."""
        groups = data.draw(hnp.arrays(np.int64, len(targets), elements=st.integers(0, 20)))
        train, validation = split(targets, fraction=fraction, seed=seed, groups=groups)
        assert sorted([*train, *validation]) == list(range(len(targets)))
        assert not set(groups[train]) & set(groups[validation])
        for label in set(targets.tolist()):
            own = set(groups[targets == label]) - set(groups[targets != label])
            assert label in targets[train]
            assert (label in targets[validation]) == (len(own) >= 2)
