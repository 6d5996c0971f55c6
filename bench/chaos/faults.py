"""Faults of servers and repository, injected one after another in an order determined by a seed."""

import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from itertools import count

from bench.harness.serving import Fleet, Server, wait_until
from bench.subjects.tiny_model import TinyModel, publish
from contract.versions.repository import Repository, new_version
from contract.versions.version import BACKBONE_WEIGHTS_FILE, MANIFEST_FILE
from demo.product import CHECKOUT

_DETECTED_S = 60.0
"""Time limit for a server to use or refuse the current version."""


@dataclass
class Faults:
    """Injects faults, and recovers from them. The first replica is never killed, so that leaks become visible."""

    fleet: Fleet
    repository: Repository
    """A repository with at least one version."""
    seed: InitVar[int]
    injected: Counter[str] = field(default_factory=Counter)
    """The number of faults by kind."""
    bad_versions: set[str] = field(default_factory=set)
    """Versions that were published, or copied into the repository, but must never be used."""
    unrecovered: list[str] = field(default_factory=list)
    """Messages of faults that were not recovered from."""

    def __post_init__(self, seed: int) -> None:
        """Seed the generators."""
        self.rng = random.Random(f"{seed}/faults")  # noqa: S311  # no secret
        self.seeds = count(seed * 1_000_000 + 1)
        self._recovery = threading.Thread()
        self._recovery.start()

    def plan(self, requests: int) -> list[str]:
        """Return the kinds of faults to inject during `requests` requests, in order."""
        planned = [name for name, (share, _) in KINDS.items() for _ in range(max(1, round(share * requests / 10_000)))]
        self.rng.shuffle(planned)
        return planned

    def inject(self, name: str) -> None:
        """Inject a fault and wait until the servers have reacted; if they do not, record it as unrecovered."""
        try:
            KINDS[name][1](self)
            self.injected[name] += 1
        except Exception as err:
            self.unrecovered.append(f"{name}: {err}")

    def finish(self) -> None:
        """Wait for the recovery of killed servers, and until all servers use a new version."""
        self._recovery.join()
        self.swap()
        self.fleet.wait_until_ready(self.repository.current())

    def swap(self) -> None:
        """Publish a version, and wait until it is in use."""
        publish(self.repository, seed=next(self.seeds))
        self.await_swap()

    def await_swap(self) -> None:
        """Wait until every running server uses the current version."""
        version = self.repository.current()

        def swapped() -> bool:
            return all(replica.version == version for replica in self.fleet.replicas if replica.up)

        wait_until(swapped, f"all servers to use {version}", timeout_s=_DETECTED_S)

    def good_versions(self) -> list[str]:
        """Return the valid versions, the newest last."""
        return sorted(set(self.repository.versions()) - self.bad_versions)

    def damage(self, file: str, damaged: Callable[[bytes], bytes]) -> None:
        """Offer a copy of the current version with one damaged file."""
        name = new_version(datetime.now(UTC), after=max(self.repository.versions()))
        self.bad_versions.add(name)
        folder = self.repository.folder / name
        shutil.copytree(self.repository.folder / self.repository.current(), folder)
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, "version": name}), encoding="utf-8")
        (folder / file).write_bytes(damaged((folder / file).read_bytes()))
        self.offer(name)

    def offer(self, version: str) -> None:
        """Make a bad version current until the spared server has refused it."""
        self.bad_versions.add(version)
        self.repository.set_current(version)
        self.restore_once_detected(f"refuse {version}")

    def restore_once_detected(self, reaction: str) -> None:
        """Wait until /health of the spared server reports a fault, then publish a version or restore the last one."""
        spared = self.fleet.replicas[0]

        def detected() -> bool:
            detail = str(spared.health().get("detail"))
            return detail != "None" and not detail.startswith("loading")

        wait_until(detected, f"{spared.name} to {reaction}", timeout_s=_DETECTED_S)
        if self.rng.random() < 0.5:
            self.swap()
        else:
            self.repository.set_current(self.good_versions()[-1])
            self.await_swap()

    def break_one(self, stop: Callable[[Server], object], *, restart_s: float | None = None) -> None:
        """Stop a replica, but never the first, and wait in a thread for its recovery.

        Args:
            stop: stops a server, or its worker.
            restart_s: seconds until the server is started again; None if it recovers by itself.
        """
        self._recovery.join()
        replica = self.rng.choice(self.fleet.replicas[1:])

        def recover() -> None:
            replica.up = None
            before = replica.workers
            try:
                stop(replica)
                if restart_s is not None:
                    time.sleep(restart_s)
                    replica.start()
                wait_until(lambda: replica.workers not in ((), before), f"another worker of {replica.name}")
                replica.wait_until_ready()
                replica.up = object()
            except Exception as err:
                self.unrecovered.append(f"{replica.name}: {err}")

        self._recovery = threading.Thread(target=recover, name="recovery")
        self._recovery.start()


def _roll_back(faults: Faults) -> None:
    good = faults.good_versions()
    faults.repository.set_current(faults.rng.choice(good[-10:-1] or good))
    faults.await_swap()


def _kill_publisher(faults: Faults) -> None:
    command = [sys.executable, "-m", "bench.subjects.tiny_model"]
    arguments = [str(faults.repository.root), str(next(faults.seeds)), "1000"]
    with subprocess.Popen([*command, *arguments], cwd=CHECKOUT, stdout=subprocess.PIPE) as publisher:
        assert publisher.stdout is not None
        publisher.stdout.readline()
        time.sleep(faults.rng.uniform(0, 0.05))
        publisher.kill()
    faults.await_swap()


def _publish_invalid(faults: Faults) -> None:
    """Publish an intact version with the probe of another model, so that validation fails."""
    model = TinyModel.draw(next(faults.seeds))
    faults.offer(publish(faults.repository, seed=next(faults.seeds), probe_of=model))


def _corrupt_pointer(faults: Faults) -> None:
    contents = [b"20200101T000000000Z-abcdef\n", b"", b"\xff\x00\xfe", b"../../etc\n", b"x" * 10**6]
    (faults.repository.folder / "CURRENT").write_bytes(faults.rng.choice(contents))
    faults.restore_once_detected("refuse CURRENT")


def _remove_pointer(faults: Faults) -> None:
    (faults.repository.folder / "CURRENT").unlink()
    faults.restore_once_detected("report that CURRENT is missing")


def _remove_repository(faults: Faults) -> None:
    root = faults.repository.root
    hidden = root.with_name("hidden")
    root.rename(hidden)
    time.sleep(faults.rng.uniform(0.5, 3))
    hidden.rename(root)


def _corrupt_manifest(faults: Faults) -> None:
    faults.damage(MANIFEST_FILE, lambda _: faults.rng.choice([b"", b"{", b"[]", b"\xff\xfe", b"null"]))


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip_a_bit(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 0x40]) + data[-8:]


KINDS: Mapping[str, tuple[float, Callable[[Faults], object]]] = {
    "a version is published": (36, Faults.swap),
    "an earlier version is made current": (12, _roll_back),
    "a publisher is killed": (8, _kill_publisher),
    "a version is truncated": (3, lambda faults: faults.damage(BACKBONE_WEIGHTS_FILE, _truncate)),
    "a version is corrupted": (3, lambda faults: faults.damage(BACKBONE_WEIGHTS_FILE, _flip_a_bit)),
    "a manifest is corrupted": (3, _corrupt_manifest),
    "a version is invalid": (3, _publish_invalid),
    "CURRENT is corrupted": (5, _corrupt_pointer),
    "CURRENT is missing": (3, _remove_pointer),
    "the repository is missing": (5, _remove_repository),
    "a worker is killed": (8, lambda faults: faults.break_one(Server.kill_worker)),
    "a server is killed": (8, lambda faults: faults.break_one(Server.kill, restart_s=faults.rng.uniform(0, 2))),
    "a server is drained": (5, lambda faults: faults.break_one(Server.drain, restart_s=0)),
}
"""Each kind of fault: its number per 10,000 requests, and its function."""

KILLS = ("a publisher is killed", "a worker is killed", "a server is killed")
