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

SPEC = InputSpec(8, 12)


def png(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 30), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(shade):
    return f"data:image/png;base64,{base64.b64encode(png(shade)).decode()}"


def make_pool(*references):
    """Return a project's pool of images with alternating classes."""
    images = [LabelledImage(each, (number % 2,), number) for number, each in enumerate(references)]
    return LabelledPool(("a", "b"), tuple(images), "label", "a test", {})


def conditional(body):
    """Return a handler that serves a body with an ETag, and 304 to conditional requests."""
    etag = f'"{hashlib.sha256(body).hexdigest()}"'

    def respond(handler, request):
        unchanged = request.headers.get("If-None-Match") == etag
        reply(b"" if unchanged else body, status=304 if unchanged else 200, etag=etag)(handler, request)

    return respond


def shades(pixels):
    """Return the grey value of each image."""
    return [int(image[0, 0, 0]) for image in pixels.images]


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
    """Write class folders; `files` are bytes, or grey values for PNG files, by path."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(data) if isinstance(data, int) else data)
    return root


def load(root, pool=None, **options):
    cache = ImageCache(root / "cache", max_bytes=2**20)
    return load_pixels(pool or from_folder(root), spec=SPEC, fetcher=None, cache=cache, **options)


class TestFolders:
    def test_keeps_the_order_of_the_pool(self, tmp_path):
        pool = from_folder(write(tmp_path, {f"{'ab'[number % 2]}/{number:02}.png": number for number in range(20)}))
        pixels = load(tmp_path, pool)
        assert pixels.images.shape == (20, 8, 12, 3)
        assert pixels.references == tuple(image.reference for image in pool.images)
        for image, target, reference in zip(pixels.images, pixels.targets, pixels.references, strict=True):
            number = int(Path(reference).stem)
            assert image.tobytes() == decode_image(png(number), SPEC).tobytes()
            assert target == number % 2
        assert not (tmp_path / "cache").exists()

    def test_leaves_out_and_names_unreadable_images(self, tmp_path):
        files = {"a/1.png": b"not an image", "a/2.png": 2, "a/3.png": png(3)[:40], "a/4.png": 1, "b/5.png": 5}
        write(tmp_path, files)
        Image.new("L", (1100, 1000)).save(tmp_path / "b" / "6.png")
        pool = from_folder(tmp_path)
        (tmp_path / "a" / "4.png").unlink()
        pixels = load(tmp_path, pool, max_megapixels=1)
        assert shades(pixels) == [2, 5]
        assert pixels.targets.tolist() == [0, 1]
        assert [Path(each.name).name for each in pixels.unreadable] == ["1.png", "3.png", "4.png", "6.png"]
        assert all(each.reason for each in pixels.unreadable)
        missing = "cannot read the file: No such file or directory; check that it exists and is readable"
        assert pixels.unreadable[2].reason == missing
        assert "raise LABELNEXT_MAX_MEGAPIXELS" in pixels.unreadable[3].reason
        (tmp_path / "b" / "5.png").write_bytes(b"broken")
        with pytest.raises(LabelError, match=r"got 1 images of 1 and 5 unreadable images \(.*1\.png: "):
            load(tmp_path, pool, max_megapixels=1)

    def test_copies_form_a_group(self, tmp_path):
        write(tmp_path, {"a/1.png": 1, "a/2.png": 2, "a/3.png": 1, "b/4.png": 1, "b/5.png": 5})
        with Image.open(tmp_path / "a" / "2.png") as image:
            image.save(tmp_path / "b" / "6.bmp")
        pixels = load(tmp_path)
        assert pixels.groups.tolist() == [0, 1, 0, 0, 4, 1]
        assert len(set(pixels.digests)) == 4


class TestSeveralLabels:
    def test_targets_mark_the_labels_of_each_image(self, tmp_path):
        label_sets = [(0, 2), (), (1,), (2,)]
        uris = [*map(data_uri, range(3)), "data:,no"]
        images = [LabelledImage(*each, task) for task, each in enumerate(zip(uris, label_sets, strict=True), 10)]
        pool = LabelledPool(("a", "b", "c"), tuple(images), "label", "a test", {}, multiple=True)
        with Fetcher(FetchSettings()) as fetcher:
            pixels = load_pixels(pool, spec=SPEC, fetcher=fetcher, cache=ImageCache(tmp_path / "none", max_bytes=2**20))
        assert pixels.targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
        assert pixels.targets.dtype == np.uint8
        assert pixels.task_ids.tolist() == [10, 11, 12]
        assert len(pixels.unreadable) == 1
        assert not (tmp_path / "none").exists()

    def test_stratum_is_the_rarest_label(self):
        """So that rare labels are in both parts; images without a label form a stratum."""
        targets = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], np.uint8)
        assert strata(targets).tolist() == [1, 0, 2, 3]
        assert strata(np.array([[1, 1], [0, 0]], np.uint8)).tolist() == [0, 2]
        assert strata(np.array([2, 0])).tolist() == [2, 0]
        repeated = np.repeat(targets, 2, axis=0)
        _, validation = split(repeated, fraction=0.2, seed=0)
        assert sorted(strata(repeated)[validation].tolist()) == [0, 1, 2, 3]


class TestDownloads:
    REFERENCES = tuple(f"/data/upload/1/{number}.png" for number in range(4))

    def load(self, fetcher, cache, references=REFERENCES):
        return load_pixels(make_pool(*references), spec=SPEC, fetcher=fetcher, cache=ImageCache(cache, max_bytes=2**20))

    def test_downloads_only_changed_images_again(self, studio, fetcher, tmp_path):
        first, second = (self.load(fetcher, tmp_path / "new" / "cache") for _ in range(2))
        downloaded = [request for request in studio.requests if "If-None-Match" not in request.headers]
        assert (len(studio.requests), len(downloaded)) == (8, 4)
        assert first.images.tobytes() == second.images.tobytes()
        assert shades(second) == [0, 1, 2, 3]
        studio.answers[self.REFERENCES[2]] = conditional(png(200))
        for _ in range(2):
            assert shades(self.load(fetcher, tmp_path / "new" / "cache")) == [0, 1, 200, 3]
        assert len(studio.requests_to(self.REFERENCES[2])) == 4

    def test_cached_images_belong_to_one_label_studio(self, studio, fetcher, tmp_path):
        self.load(fetcher, tmp_path)
        with host() as other, Fetcher(FetchSettings(label_studio_url=other.url)) as other_fetcher:
            for number, reference in enumerate(self.REFERENCES):
                other.answers[reference] = conditional(png(100 + number))
            assert shades(self.load(other_fetcher, tmp_path)) == [100, 101, 102, 103]

    def test_downloads_images_without_etag_and_last_modified_again(self, studio, fetcher, tmp_path):
        for shade in (50, 60):
            studio.serve(self.REFERENCES[0], png(shade))
            assert shades(self.load(fetcher, tmp_path))[0] == shade
        assert len(list(tmp_path.iterdir())) == 3

    def test_names_unreadable_images_without_query(self, fetcher, tmp_path):
        pixels = self.load(fetcher, tmp_path, (*self.REFERENCES, "/data/upload/1/gone.png?signature=hidden"))
        [(name, reason, _)] = pixels.unreadable
        assert name == "/data/upload/1/gone.png"
        assert "404" in reason
        assert "hidden" not in reason

    def test_does_not_cache_undecodable_files(self, studio, fetcher, tmp_path):
        """Such as an error page with status 200."""
        studio.serve(self.REFERENCES[3], b"<html>Sign in</html>")
        [page] = self.load(fetcher, tmp_path).unreadable
        assert page.name == self.REFERENCES[3]
        studio.serve(self.REFERENCES[3], png(3))
        assert len(self.load(fetcher, tmp_path).images) == 4

    def test_error_names_the_setting_of_an_unwritable_cache(self, fetcher, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ConfigError, match="LABELNEXT_CACHE"):
            self.load(fetcher, tmp_path / "file" / "cache")


class TestSplit:
    def test_holds_out_a_fraction_of_each_class(self):
        """Images added to one class do not change the split of the others."""
        targets = np.repeat([0, 1, 2], [100, 10, 5])
        first, again, other = (split(targets, fraction=0.2, seed=seed)[1] for seed in (1, 1, 2))
        assert np.bincount(targets[first]).tolist() == [20, 2, 1]
        assert first.tolist() == again.tolist() != other.tolist()
        extended = split(np.append(targets, [2] * 10), fraction=0.2, seed=1)[1]
        assert first[first < 110].tolist() == extended[extended < 110].tolist()

    @given(
        hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 4)),
        st.floats(0.01, 0.99),
        st.integers(0, 2**31),
        st.data(),
    )
    def test_parts_are_complete_and_disjoint(self, targets, fraction, seed, data):
        """No group is in both parts. Every class with two groups is; groups with several classes are trained on."""
        groups = data.draw(hnp.arrays(np.int64, len(targets), elements=st.integers(0, 20)))
        train, validation = split(targets, fraction=fraction, seed=seed, groups=groups)
        assert sorted([*train, *validation]) == list(range(len(targets)))
        assert not set(groups[train]) & set(groups[validation])
        for label in set(targets.tolist()):
            assert not set(groups[validation]) & set(groups[targets == label]) & set(groups[targets != label])
            own = set(groups[targets == label]) - set(groups[targets != label])
            assert label in targets[train]
            assert (label in targets[validation]) == (len(own) >= 2)
