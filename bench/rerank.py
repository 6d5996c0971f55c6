"""What does a second round cost? `python -m bench.rerank [--image-size 224] [--images 240] [--few 500] [--many 4000]`.

A pool is scored, the head is trained again on more labels (`--train head`, which leaves the trunk as it is), and the
pool is scored again. Measured over HTTP under gunicorn, by one client with requests of 100 tasks:

    again      the second round over the first, its median over three changes of version, and once more after a restart
               of the server, whose cache then comes from the disk; images come from a web server that answers 304 to
               who has them already, and in a second run from local files
    growth     at `--growth-image-size`, a server that has just started scores few images and then many others, its
               cache in memory and as large as by default: by which factor time grows, and by how many MB the peak of
               memory

Every image must get a score, the second head another one than the first, and what is scored again by the first head
the same one as before; otherwise the bench fails.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from bench.hosts import common_folder, image_host
from bench.load import Client, images_per_s, say, send, split
from bench.machine import describe
from bench.model import Subject, small_images, trained, workplace
from bench.serving import Server, serving
from contract.versions.repository import Repository
from server.inference.resources import available_cpus
from server.settings import Settings

Scores = npt.NDArray[np.float64]

_TASKS = 100
_HITS = "labelnext_feature_cache_hits_total"
_UNCHANGED = 'labelnext_image_revalidations_total{result="unchanged"}'
_SAME = 1e-4
"""How far two scores of one version may be apart: the passes of an image are computed beside those of others."""

_MOSTLY = 0.9
"""Share of the scores that another head must change; where all passes agree for sure, two heads score alike."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A pool that was scored."""

    scores: Scores
    """(N,)"""
    rate: float
    """In images/s."""


@dataclass(frozen=True, slots=True)
class Rerank:
    """A pool scored once, and again under other heads."""

    first: float
    """In images/s, as are the others."""
    again: tuple[float, ...]
    after_restart: float
    hits: int
    """Images whose features the server had, of those scored again."""
    unchanged: int
    """Images that the web server did not have to send again."""

    @property
    def speedup(self) -> float:
        """The rate of the second round over that of the first."""
        return median(self.again) / self.first


@dataclass(frozen=True, slots=True)
class Growth:
    """Few images, then many others, scored by one server."""

    few_s: float
    many_s: float
    few_peak_rss_mb: float
    many_peak_rss_mb: float


def main() -> None:
    """Measure, print a table and one line of JSON."""
    options = _parse()
    first, second = (
        trained(image_size=options.image_size, part="head", labels=labels)
        for labels in (options.labels, options.more_labels)
    )
    assert first.version.manifest.trunk == second.version.manifest.trunk, "two heads on one trunk were expected"
    photos = second.photos[: options.images]
    settings = {"LABELNEXT_POLL_S": "0.5", "LABELNEXT_DEADLINE_S": "900", "LABELNEXT_PROVIDER": options.provider}
    web = _rerank_from_web((first, second), photos, settings, rounds=options.rounds)
    local = _rerank_from_local_files((first, second), photos, settings, rounds=options.rounds)
    small = trained(image_size=options.growth_image_size, part="head", labels=options.labels)
    growth = _grow(small, small_images(options.few + options.many), settings, few=options.few)
    result = {
        "bench": "rerank",
        "source": first.source,
        "architecture": first.version.manifest.architecture,
        "passes": first.version.manifest.passes,
        **vars(options),
        **_summarise(web, local),
        f"time_growth_{options.few}_to_{options.many}": round(growth.many_s / growth.few_s, 3),
        "rss_growth_mb": round(growth.many_peak_rss_mb - growth.few_peak_rss_mb, 1),
        "growth_images_per_s": round(options.many / growth.many_s, 2),
        "peak_rss_mb": growth.many_peak_rss_mb,
        "threads": {"engine": available_cpus(), "requests": Settings().threads, "fetch": Settings().fetch_threads},
        "machine": describe(),
    }
    _print_table(web, local, growth, options)
    print(json.dumps(result))


def check_scores(scored: Sequence[Scored], *, restarted: Scored) -> None:
    """Compare what two versions in turns scored, and what the last of them scored after a restart.

    Raises:
        AssertionError: if two heads score alike, or a version does not score as it did before.
    """
    for earlier, later in pairwise(scored):
        assert np.mean(earlier.scores != later.scores) > _MOSTLY, "another head gave the same scores"
    for earlier, later in [*zip(scored, scored[2:], strict=False), (scored[-1], restarted)]:
        farthest = np.abs(earlier.scores - later.scores).max()
        assert farthest <= _SAME, f"a version's scores moved by {farthest:.2g} between two requests"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.rerank", description=__doc__.partition("\n")[0])
    parser.add_argument("--image-size", type=int, default=224, help="in pixels (default: %(default)s)")
    parser.add_argument("--images", type=int, default=240, help="in the pool (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="changes of version (default: %(default)s)")
    parser.add_argument("--labels", type=int, default=300, help="of the first version (default: %(default)s)")
    parser.add_argument("--more-labels", type=int, default=400, help="of the second one (default: %(default)s)")
    parser.add_argument("--growth-image-size", type=int, default=112, help="in pixels (default: %(default)s)")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--few", type=int, default=500, help="images (default: %(default)s)")
    parser.add_argument("--many", type=int, default=4000, help="images (default: %(default)s)")
    return parser.parse_args()


def _rerank_from_web(
    subjects: tuple[Subject, Subject], photos: tuple[Path, ...], settings: Mapping[str, str], *, rounds: int
) -> Rerank:
    with image_host(photos) as host:
        references = [host.reference(photo) for photo in photos]
        say("images from a web server")
        return _rerank(subjects, references, {**settings, "LABELNEXT_ALLOWED_ORIGINS": host.url}, rounds=rounds)


def _rerank_from_local_files(
    subjects: tuple[Subject, Subject], photos: tuple[Path, ...], settings: Mapping[str, str], *, rounds: int
) -> Rerank:
    root = common_folder(photos)
    references = [f"/data/local-files/?d={quote(photo.relative_to(root).as_posix())}" for photo in photos]
    say("images from local files")
    return _rerank(subjects, references, {**settings, "LABELNEXT_LOCAL_FILES_ROOT": str(root)}, rounds=rounds)


def _rerank(
    subjects: tuple[Subject, Subject], references: Sequence[str], settings: Mapping[str, str], *, rounds: int
) -> Rerank:
    """Score under the first version, then `rounds` times under the second and the first in turns, then restart."""
    versions = [subject.version for subject in subjects]
    with workplace(*versions) as folder:
        repository = Repository(folder / "models")
        settings = {**settings, "LABELNEXT_CACHE_DIR": str(folder / "cache")}
        with serving(repository.root, log=folder / "server.log", settings=settings) as server:
            client = Client(server.url, versions[0].manifest.labels)
            scored = [_score(client, references, versions[0].name)]
            before = server.metrics()
            for number in range(1, rounds + 1):
                version = versions[number % 2].name
                repository.point_to(version)
                server.wait_until_ready(version)
                scored.append(_score(client, references, version))
            after = server.metrics()
        with serving(repository.root, log=folder / "restarted.log", settings=settings) as server:
            client = Client(server.url, versions[0].manifest.labels)
            restarted = _score(client, references, repository.current())
            hits_after_restart = int(server.metrics()[_HITS])
    check_scores(scored, restarted=restarted)
    hits = int(after[_HITS] - before[_HITS])
    assert hits == rounds * len(references), f"{hits} hits for {rounds} times {len(references)} images"
    assert hits_after_restart == len(references), f"{hits_after_restart} hits for {len(references)} images on a restart"
    return Rerank(
        first=scored[0].rate,
        again=tuple(each.rate for each in scored[1:]),
        after_restart=restarted.rate,
        hits=hits,
        unchanged=int(after.get(_UNCHANGED, 0) - before.get(_UNCHANGED, 0)),
    )


def _grow(subject: Subject, images: Sequence[Path], settings: Mapping[str, str], *, few: int) -> Growth:
    with image_host(images) as host, workplace(subject.version) as folder:
        settings = {**settings, "LABELNEXT_ALLOWED_ORIGINS": host.url}
        references = [host.reference(image) for image in images]
        with serving(folder / "models", log=folder / "server.log", settings=settings) as server:
            client = Client(server.url, subject.version.manifest.labels)
            server.forget_peak()
            few_s, few_mb = _time(client, server, references[:few], subject.version.name)
            many_s, many_mb = _time(client, server, references[few:], subject.version.name)
    return Growth(few_s, many_s, few_mb, many_mb)


def _time(client: Client, server: Server, references: Sequence[str], version: str) -> tuple[float, float]:
    """Return the seconds that scoring took, and the server's peak of memory in MB afterwards."""
    return len(references) / _score(client, references, version).rate, server.peak_rss_mb()


def _score(client: Client, references: Sequence[str], version: str) -> Scored:
    replies = send(client, split(references, _TASKS), clients=1)
    scores = [score for reply in replies for score in reply.scores]
    versions = frozenset[str]().union(*(reply.versions for reply in replies))
    assert None not in scores, f"{scores.count(None)} of {len(references)} images got no score"
    assert versions == {version}, f"predictions of {version} were expected, not of {', '.join(sorted(versions))}"
    rate = images_per_s(replies)
    say(f"{len(references)} images under {version}: {rate:.2f} images/s")
    return Scored(np.array(scores, np.float64), rate)


def _summarise(web: Rerank, local: Rerank) -> dict[str, object]:
    return {
        "rerank_speedup": round(web.speedup, 2),
        "images_per_s_first": round(web.first, 2),
        "images_per_s_again": round(median(web.again), 2),
        "images_per_s_again_after_restart": round(web.after_restart, 2),
        "cache_hits": web.hits,
        "images_unchanged": web.unchanged,
        "local_files": {
            "rerank_speedup": round(local.speedup, 2),
            "images_per_s_first": round(local.first, 2),
            "images_per_s_again": round(median(local.again), 2),
            "images_per_s_again_after_restart": round(local.after_restart, 2),
            "cache_hits": local.hits,
        },
    }


def _print_table(web: Rerank, local: Rerank, growth: Growth, options: argparse.Namespace) -> None:
    print(f"{'images/s':<12} {'first':>8} {'again':>8} {'restarted':>9} {'speedup':>8}")
    for name, each in (("web server", web), ("local files", local)):
        print(f"{name:<12} {each.first:8.2f} {median(each.again):8.2f} {each.after_restart:9.2f} {each.speedup:7.1f}x")
    print(f"{'images':<12} {'seconds':>8} {'peak MB':>8}")
    print(f"{options.few:<12} {growth.few_s:8.2f} {growth.few_peak_rss_mb:8.1f}")
    print(f"{options.many:<12} {growth.many_s:8.2f} {growth.many_peak_rss_mb:8.1f}")


if __name__ == "__main__":
    main()
