"""What befalls the servers and their repository, one thing after the other, in an order drawn by a seed."""

import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from itertools import count

from bench.harness.serving import Fleet, Server, wait_until
from bench.subjects.tiny_model import TinyModel, publish
from contract.versions.repository import Repository, new_version
from contract.versions.version import BACKBONE_WEIGHTS_FILE, MANIFEST_FILE
from demo.product import CHECKOUT

_NOTICED_S = 60.0
"""Within which a server has to have taken up, or refused, what is in its repository."""
_AWAY_S = (0.5, 3.0)


@dataclass
class Faults:
    """Breaks things, and mends them. The first replica is spared, so that what it gathers over time is seen."""

    fleet: Fleet
    repository: Repository
    """Holds at least one version."""
    seed: InitVar[int]
    done: Counter[str] = field(default_factory=Counter)
    bad_versions: set[str] = field(default_factory=set)
    """Published in some way, but no version that may be used."""
    unrecovered: list[str] = field(default_factory=list)

    def __post_init__(self, seed: int) -> None:
        """Begin at the seed."""
        self._rng = random.Random(f"{seed}/faults")  # noqa: S311  # no secret
        self._seeds = count(seed * 1_000_000 + 1)
        self._recovery: threading.Thread | None = None

    def plan(self, requests: int) -> list[str]:
        """Return what is to happen during so many requests, in order."""
        planned = [name for name, (share, _) in KINDS.items() for _ in range(max(1, round(share * requests / 10_000)))]
        self._rng.shuffle(planned)
        return planned

    def inject(self, name: str) -> None:
        """Let one thing happen, and return when the servers have noticed."""
        KINDS[name][1](self)
        self.done[name] += 1

    def finish(self) -> None:
        """Return when what was killed is back, and every server uses the version that is published."""
        self._wait_for_recovery()
        self.swap()
        self.fleet.wait_until_ready(self.repository.current())

    # Versions that are good.

    def swap(self) -> None:
        """Publish a version."""
        self._await_swap(publish(self.repository, seed=next(self._seeds)))

    def roll_back(self) -> None:
        """Make an earlier version current again."""
        good = self._good_versions()
        self._point_to(self._rng.choice(good[-10:-1] or good))

    def kill_publisher(self) -> None:
        """Kill a program while it publishes one version after the other."""
        command = [sys.executable, "-m", "bench.subjects.tiny_model"]
        arguments = [str(self.repository.root), str(next(self._seeds)), "1000"]
        with subprocess.Popen([*command, *arguments], cwd=CHECKOUT, stdout=subprocess.PIPE) as publisher:
            assert publisher.stdout is not None
            publisher.stdout.readline()
            time.sleep(self._rng.uniform(0, 0.05))
            publisher.kill()
        self._await_swap(self.repository.current())

    # Versions that are not.

    def tear(self) -> None:
        """Have a version that lacks the end of its weights, as after a copy that broke off."""
        self._damage(BACKBONE_WEIGHTS_FILE, lambda data: data[: len(data) // 2])

    def corrupt(self) -> None:
        """Have a version in whose weights a bit is another."""

        def flip(data: bytes) -> bytes:
            middle = len(data) // 2
            return data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :]

        self._damage(BACKBONE_WEIGHTS_FILE, flip)

    def garble(self) -> None:
        """Have a version whose manifest is none."""
        self._damage(MANIFEST_FILE, lambda _: self._rng.choice([b"", b"{", b"[]", b"\xff\xfe", b"null"]))

    def pretend(self) -> None:
        """Publish, by the book, a version that does not compute what its trainer computed."""
        self._offer(publish(self.repository, seed=next(self._seeds), probe_of=TinyModel.draw(next(self._seeds))))

    def point_nowhere(self) -> None:
        """Have CURRENT name what is not there, or nothing, or be no text."""
        content = self._rng.choice(
            [b"20200101T000000000Z-abcdef\n", b"", b"\xff\x00\xfe", b"../../etc\n", b"x" * 10**6]
        )
        (self.repository.folder / "CURRENT").write_bytes(content)
        self._wait_for_notice("does not read CURRENT")
        self._restore()

    def lose_pointer(self) -> None:
        """Have no CURRENT for a while."""
        (self.repository.folder / "CURRENT").unlink()
        self._wait_for_notice("does not miss CURRENT")
        self._restore()

    def take_away(self) -> None:
        """Have no repository for a while."""
        root = self.repository.root
        away = root.with_name("away")
        root.rename(away)
        time.sleep(self._rng.uniform(*_AWAY_S))
        away.rename(root)

    # Servers.

    def kill_worker(self) -> None:
        """Kill a worker; its master starts another one."""
        self._break(Server.kill_worker)

    def kill_replica(self) -> None:
        """Kill a whole server, and start it again."""
        self._break(Server.kill, restart_s=self._rng.uniform(0, 2))

    def drain(self) -> None:
        """Ask a server to end, and start it again."""
        self._break(Server.drain, restart_s=0)

    def _break(self, how: Callable[[Server], object], *, restart_s: float | None = None) -> None:
        """Break one of the replicas that are not spared, and see to it that it comes back, which takes its time.

        One that does not come back by itself is started again after so many seconds.
        """
        self._wait_for_recovery()
        replica = self._rng.choice(self.fleet.replicas[1:])

        def recover() -> None:
            replica.up = None
            before = replica.workers
            try:
                how(replica)
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

    def _wait_for_recovery(self) -> None:
        if self._recovery is not None:
            self._recovery.join()

    # The repository.

    def _good_versions(self) -> list[str]:
        return sorted(set(self.repository.versions()) - self.bad_versions)

    def _point_to(self, version: str) -> None:
        self.repository.point_to(version)
        self._await_swap(version)

    def _await_swap(self, version: str) -> None:
        """Return when every server that is there uses the version."""

        def reached() -> bool:
            return all(replica.version == version for replica in self.fleet.replicas if replica.up)

        wait_until(reached, f"all servers to use {version}", timeout_s=_NOTICED_S)

    def _damage(self, file: str, how: Callable[[bytes], bytes]) -> None:
        """Offer a new version that is like the one in use, but for one of its files."""
        name = new_version(datetime.now(UTC), after=max(self.repository.versions()))
        self.bad_versions.add(name)
        folder = self.repository.folder / name
        shutil.copytree(self.repository.folder / self.repository.current(), folder)
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        (folder / MANIFEST_FILE).write_text(json.dumps({**manifest, "version": name}), encoding="utf-8")
        (folder / file).write_bytes(how((folder / file).read_bytes()))
        self._offer(name)

    def _offer(self, version: str) -> None:
        """Make a bad version current until the spared server has refused it."""
        self.bad_versions.add(version)
        self.repository.point_to(version)
        self._wait_for_notice(f"does not refuse {version}")
        self._restore()

    def _wait_for_notice(self, otherwise: str) -> None:
        spared = self.fleet.replicas[0]

        def noticed() -> bool:
            detail = str(spared.health().get("detail"))
            return detail != "None" and not detail.startswith("loading")

        wait_until(noticed, f"{spared.name}, which {otherwise}", timeout_s=_NOTICED_S)

    def _restore(self) -> None:
        """Let the version in use be current again, or a new one."""
        if self._rng.random() < 0.5:
            self.swap()
        else:
            self._point_to(self._good_versions()[-1])


KINDS: Mapping[str, tuple[float, Callable[[Faults], None]]] = {
    "a version is published": (36, Faults.swap),
    "an earlier version is made current": (12, Faults.roll_back),
    "a publisher is killed -9": (8, Faults.kill_publisher),
    "a version is torn": (3, Faults.tear),
    "a version is corrupted": (3, Faults.corrupt),
    "a manifest is garbled": (3, Faults.garble),
    "a version is not valid": (3, Faults.pretend),
    "CURRENT points nowhere": (5, Faults.point_nowhere),
    "CURRENT is gone": (3, Faults.lose_pointer),
    "the repository is away": (5, Faults.take_away),
    "a worker is killed -9": (8, Faults.kill_worker),
    "a server is killed -9": (8, Faults.kill_replica),
    "a server is drained": (5, Faults.drain),
}
"""Each with how often it happens in 10,000 requests."""

KILLS: Sequence[str] = ("a publisher is killed -9", "a worker is killed -9", "a server is killed -9")
