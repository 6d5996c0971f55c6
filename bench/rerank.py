"""What does a second round cost? `python -m bench.rerank [--image-size 224] [--images 1000] [--few 500] [--many 4000]`.

Scores a pool, changes to a version with the same backbone and a head trained on more labels, and scores the pool again.
Measured over HTTP under gunicorn, by one client with requests of 100 tasks:

    again      speed of the second round over the first: the median over three changes of version, after a restart of
               the server, with features read from disk, and by a server that revalidates each image; with images from a
               web server and from local files
    growth     at `--growth-image-size`, a freshly started server with its default cache in memory scores few images and
               then many others: the factor by which time grows, and the MB by which peak memory grows

The bench fails unless every image gets a score, the two heads score differently, a head scores equally both times, no
image is downloaded twice, and images are revalidated only at the end.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from bench.harness.frame import log, print_table, read_options, report
from bench.harness.hosts import common_folder, image_host
from bench.harness.load import Client, images_per_s, send, split
from bench.harness.serving import serving
from bench.subjects.model import Subject, small_images, train_subject, working_folder
from contract.versions.repository import Repository
from contract.versions.version import Version

_OPTIONS: Mapping[str, tuple[object, str]] = {
    "image_size": (224, "in pixels"),
    "images": (1000, "in the pool"),
    "rounds": (3, "changes of version"),
    "labels": (300, "of the first version"),
    "more_labels": (400, "of the second version"),
    "growth_image_size": (112, "in pixels"),
    "provider": (("cpu", "cuda"), "of the server"),
    "few": (500, "images of the first request of `growth`"),
    "many": (4000, "images of the second request of `growth`"),
}
_TASKS = 100
_HITS = "labelnext_feature_cache_hits_total"
_TOLERANCE = 1e-4
"""Maximum difference of two scores by the same version: results depend slightly on the batch."""

_CHANGED_SHARE = 0.9
"""Share of the scores that another head must change; heads score equally where all passes are certain."""


class Scored(NamedTuple):
    """Scores of a pool."""

    scores: npt.NDArray[np.float64]
    """(N,)"""
    rate: float
    """In images/s."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print tables and a line of JSON."""
    options = read_options("rerank", __doc__, _OPTIONS, arguments)
    first, second = (
        train_subject(image_size=options.image_size, labels=labels) for labels in (options.labels, options.more_labels)
    )
    assert first.version.manifest.backbone == second.version.manifest.backbone, "the versions have different backbones"
    settings = {"LABELNEXT_POLL_S": "0.5", "LABELNEXT_DEADLINE_S": "900", "LABELNEXT_PROVIDER": options.provider}
    versions, photos = (first.version, second.version), second.photos[: options.images]
    log("images from a web server")
    with image_host(photos) as host:
        references = [host.reference(photo) for photo in photos]
        allowed = {**settings, "LABELNEXT_ALLOWED_ORIGINS": host.url}
        web = _rerank(versions, references, allowed, rounds=options.rounds)
        counts = host.counts()
    assert counts == {"200": len(photos), "304": len(photos)}, (
        f"expected one download and one revalidation of each of {len(photos)} images, got {counts}"
    )
    log("images from local files")
    root = common_folder(photos)
    references = [f"/data/local-files/?d={quote(photo.relative_to(root).as_posix())}" for photo in photos]
    local = _rerank(versions, references, {**settings, "LABELNEXT_LOCAL_FILES_ROOT": str(root)}, rounds=options.rounds)
    small = train_subject(image_size=options.growth_image_size, labels=options.labels)
    few, many = _grow(small, small_images(options.few + options.many), settings, few=options.few)
    print_table([{"images from": name, **row} for name, row in (("web server", web), ("local files", local))])
    print_table([few, many])
    result = {
        **web,
        "local_files": local,
        f"time_growth_{options.few}_to_{options.many}": many["seconds"] / few["seconds"],
        "rss_growth_mb": many["peak_rss_mb"] - few["peak_rss_mb"],
        "growth_images_per_s": options.many / many["seconds"],
        "peak_rss_mb": many["peak_rss_mb"],
    }
    report("rerank", options, first, result)


def check_scores(scored: Sequence[Scored], *, restarted: Scored) -> None:
    """Check that two alternating heads score differently, and each as before, also after a restart."""
    for earlier, later in pairwise(scored):
        assert np.mean(earlier.scores != later.scores) > _CHANGED_SHARE, "another head gave the same scores"
    for earlier, later in [*zip(scored, scored[2:], strict=False), (scored[-1], restarted)]:
        difference = np.abs(earlier.scores - later.scores).max()
        assert difference <= _TOLERANCE, f"a version's scores moved by {difference:.2g} between two requests"


def summarise(scored: Sequence[Scored], *, restarted: Scored) -> dict[str, float]:
    """Return rates in images/s, and the median of the later rounds over the first."""
    again = median(each.rate for each in scored[1:])
    return {
        "rerank_speedup": again / scored[0].rate,
        "images_per_s_first": scored[0].rate,
        "images_per_s_again": again,
        "images_per_s_again_after_restart": restarted.rate,
    }


def _rerank(
    versions: Sequence[Version], references: Sequence[str], settings: Mapping[str, str], *, rounds: int
) -> dict[str, float]:
    """Score with the first version, then `rounds` times with alternating versions, then after restarts."""
    with working_folder(*versions) as folder:
        repository = Repository(folder / "models")
        settings = {**settings, "LABELNEXT_CACHE_DIR": str(folder / "cache")}
        labels = versions[0].manifest.labels
        with serving(repository.root, log=folder / "server.log", settings=settings) as server:
            client = Client(server.url, labels)
            scored = [_score(client, references, versions[0].name)]
            before = server.metrics()
            for number in range(1, rounds + 1):
                version = versions[number % 2].name
                repository.set_current(version)
                server.wait_until_ready(version)
                scored.append(_score(client, references, version))
            after = server.metrics()
        with serving(repository.root, log=folder / "restarted.log", settings=settings) as server:
            restarted = _score(Client(server.url, labels), references, version)
            hits_after_restart = int(server.metrics()[_HITS])
        revalidating = {**settings, "LABELNEXT_RECHECK_S": "0"}
        with serving(repository.root, log=folder / "revalidating.log", settings=revalidating) as server:
            revalidated = _score(Client(server.url, labels), references, version)
    for later in (restarted, revalidated):
        check_scores(scored, restarted=later)
    hits = int(after[_HITS] - before[_HITS])
    assert hits == rounds * len(references), f"expected {rounds * len(references)} cache hits, got {hits}"
    assert hits_after_restart == len(references), (
        f"expected {len(references)} cache hits after a restart, got {hits_after_restart}"
    )
    return {**summarise(scored, restarted=restarted), "images_per_s_again_asked": revalidated.rate, "cache_hits": hits}


def _grow(subject: Subject, images: Sequence[Path], settings: Mapping[str, str], *, few: int) -> list[dict[str, float]]:
    """Score `few` images and then the others; return seconds and peak memory of both."""
    rows = []
    with image_host(images) as host, working_folder(subject.version) as folder:
        settings = {**settings, "LABELNEXT_ALLOWED_ORIGINS": host.url}
        references = [host.reference(image) for image in images]
        with serving(folder / "models", log=folder / "server.log", settings=settings) as server:
            client = Client(server.url, subject.version.manifest.labels)
            server.reset_peak_rss()
            for part in (references[:few], references[few:]):
                seconds = len(part) / _score(client, part, subject.version.name).rate
                rows.append({"images": len(part), "seconds": seconds, "peak_rss_mb": server.peak_rss_mb()})
    return rows


def _score(client: Client, references: Sequence[str], version: str) -> Scored:
    replies = send(client, split(references, _TASKS), clients=1)
    scores = [score for reply in replies for score in reply.scores]
    versions = {version for reply in replies for version in reply.versions}
    assert None not in scores, f"{scores.count(None)} of {len(references)} images got no score"
    assert versions == {version}, f"expected predictions of {version}, got {', '.join(sorted(versions))}"
    rate = images_per_s(replies)
    log(f"{len(references)} images under {version}: {rate:.2f} images/s")
    return Scored(np.array(scores, np.float64), rate)


if __name__ == "__main__":
    main()
