"""Three servers behind haproxy: they come, go and change versions, and nobody who asks them notices."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import urllib3

from bench.chaos.traffic import Picture, draw_pictures
from bench.harness.hosts import Handler, Host, ImageHost, Request, host, image_host, reply
from bench.harness.load import Client, sending, split
from bench.harness.serving import PROXY_CONFIG, Fleet, fleet, has_haproxy, wait_until
from bench.subjects.tiny_model import LABELS, publish
from contract.versions.repository import Repository
from demo.processes import free_port, running

pytestmark = pytest.mark.skipif(not has_haproxy(), reason="needs haproxy: apt-get install haproxy")

DOCKER_CONFIG = PROXY_CONFIG.with_name("docker.cfg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replicas")


@pytest.fixture(scope="module")
def pictures(folder: Path) -> tuple[Picture, ...]:
    images = folder / "images"
    images.mkdir()
    return draw_pictures(images, seed=0)


@pytest.fixture(scope="module")
def images(pictures: tuple[Picture, ...]) -> Iterator[ImageHost]:
    with image_host([picture.path for picture in pictures]) as each:
        yield each


@pytest.fixture(scope="module")
def repository(folder: Path) -> Repository:
    repository = Repository(folder / "models")
    publish(repository, seed=1)
    return repository


@pytest.fixture(scope="module")
def servers(folder: Path, repository: Repository, images: ImageHost) -> Iterator[Fleet]:
    settings = {"LABELNEXT_POLL_S": "0.2", "LABELNEXT_ALLOWED_ORIGINS": images.url}
    with fleet(repository.root, replicas=3, folder=folder / "logs", settings=settings) as each:
        yield each


@pytest.fixture
def references(images: ImageHost, pictures: tuple[Picture, ...]) -> list[str]:
    return [images.reference(picture.path) for picture in pictures]


def test_nothing_is_lost_while_servers_die_drain_and_change_versions(
    servers: Fleet, repository: Repository, references: list[str]
):
    """Under load a worker, a whole server and a master are killed, one server is drained, a version is published."""
    _, second, third = servers.replicas
    client = Client(servers.url, LABELS)
    requests = [list(part) for part in split(references, 3)]
    with sending(client, requests, clients=6) as replies:
        second.kill_worker()
        wait_until(lambda: second.ready, "the worker's successor")
        second.kill()
        second.start()
        servers.wait_until_ready()
        assert third.drain() < 30
        third.start()
        servers.wait_until_ready(publish(repository, seed=2))
        second.kill_master()
        wait_until(lambda: not second.ready, "the orphan to notice", timeout_s=15)
        second.stop()
        second.start()
        servers.wait_until_ready()
    assert len(replies) > 100
    assert sum(reply.failed for reply in replies) == 0
    assert max(reply.seconds for reply in replies) < 15
    assert {version for reply in replies for version in reply.versions} == set(repository.versions())


@dataclass
class Slow:
    """Two servers, and a host that holds back an image until it is released."""

    servers: Fleet
    host: Host
    release: threading.Event
    pool: ThreadPoolExecutor

    @property
    def url(self) -> str:
        return f"{self.host.url}/slow.png"

    def await_asked(self, times: int = 1) -> None:
        wait_until(lambda: len(self.host.requests_to("/slow.png")) == times, "a server to ask for the image")


@pytest.fixture
def slow(repository: Repository, pictures: tuple[Picture, ...], tmp_path: Path) -> Iterator[Slow]:
    release = threading.Event()
    with host() as each, ExitStack() as stack:

        def answer(handler: Handler, request: Request) -> None:
            release.wait(60)
            reply(pictures[0].data)(handler, request)

        each.answers["/slow.png"] = answer
        settings = {"LABELNEXT_ALLOWED_ORIGINS": each.url}
        servers = stack.enter_context(fleet(repository.root, replicas=2, folder=tmp_path, settings=settings))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        stack.callback(release.set)
        yield Slow(servers, each, release, pool)


def test_a_request_in_hand_goes_to_another_server_when_its_own_dies(slow: Slow, pictures: tuple[Picture, ...]):
    """With a body of a megabyte, which the proxy has kept."""
    first, second = slow.servers.replicas
    second.stop()
    client = Client(slow.servers.url, LABELS)
    asked = slow.pool.submit(client.predict, [slow.url, pictures[-1].inline])
    slow.await_asked()
    second.start()
    second.wait_until_ready()
    wait_until(lambda: client.predict([pictures[0].inline]).failed == 0 and _predicted(second) > 0, "the second's turn")
    first.kill()
    slow.await_asked(2)
    slow.release.set()
    assert asked.result(30).failed == 0


def test_nobody_waits_for_a_server_that_drains(slow: Slow, pictures: tuple[Picture, ...]):
    """It answers what it has in hand, and refuses connections, so that the proxy asks another one."""
    drained = slow.servers.replicas[1]
    held = slow.pool.submit(Client(drained.url, LABELS).predict, [slow.url])
    slow.await_asked()
    drain = slow.pool.submit(drained.drain)
    client = Client(slow.servers.url, LABELS)
    replies = [client.predict([pictures[0].inline]) for _ in range(100)]
    assert sum(reply.failed for reply in replies) == 0
    assert max(reply.seconds for reply in replies) < 5
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", drained.port), timeout=5)
    assert not held.done()
    slow.release.set()
    assert held.result(30).failed == 0
    assert drain.result(30) < 30


def test_without_a_server_the_proxy_says_so_at_once(repository: Repository, tmp_path: Path):
    """503 with Retry-After, as JSON, and no waiting for what may never come."""
    with fleet(repository.root, replicas=1, folder=tmp_path, settings={}) as servers:
        servers.replicas[0].kill()
        reply = urllib3.request("POST", f"{servers.url}/predict", json={}, retries=False, timeout=30)
    assert (reply.status, reply.headers["Retry-After"], reply.json()["error"]) == (503, "5", "unavailable")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to answer in place of Docker's DNS on port 53")
def test_the_proxy_finds_as_many_servers_as_docker_names(tmp_path: Path):
    """Of the service's addresses each gets its share, and one that is added is found."""
    addresses = ["127.0.3.1", "127.0.3.2"]
    bind = f"127.0.0.1:{free_port()}"
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.11\n")
    with ExitStack() as stack:
        names = stack.enter_context(_docker_dns(addresses))
        for address in [*addresses, "127.0.3.3"]:
            # On the port of the servers in compose.yaml, each path is answered with the address.
            named = reply(json.dumps({"address": address}).encode())
            stack.enter_context(host(address=address, port=9090)).default = named
        command: list[str | Path] = ["unshare", "--mount", "sh", "-c", _IN_A_CONTAINER, "haproxy"]
        command += [resolv_conf, PROXY_CONFIG, DOCKER_CONFIG]
        environment = {"LABELNEXT_PROXY_BIND": bind}
        stack.enter_context(running("haproxy", command, log=tmp_path / "log", environment=environment))

        def found() -> set[str]:
            patient = urllib3.Retry(connect=8, backoff_factor=0.05)  # it is only starting
            replies = [urllib3.request("GET", f"http://{bind}/", retries=patient) for _ in range(12)]
            return {json.loads(reply.data).get("address") for reply in replies}

        wait_until(lambda: found() == set(addresses), "both servers", timeout_s=30)
        names.append("127.0.3.3")
        wait_until(lambda: found() == set(names), "the third server", timeout_s=30)


_IN_A_CONTAINER = 'mount --bind "$1" /etc/resolv.conf && exec haproxy -db -f "$2" -f "$3"'
"""A container's own resolv.conf names the engine's DNS."""


def _predicted(replica) -> float:
    samples = replica.metrics()
    return sum(value for name, value in samples.items() if "http_requests_total" in name and '"/predict"' in name)


@contextmanager
def _docker_dns(addresses: list[str]) -> Iterator[list[str]]:
    """Names these addresses to who asks for A records, as Docker does for a service."""
    names = list(addresses)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, reply_to = self.request
            end = data.index(b"\0", 12) + 5
            (kind,) = struct.unpack("!H", data[end - 4 : end - 2])
            given = names if kind == 1 else []
            head = data[:2] + struct.pack("!HHHHH", 0x8180, 1, len(given), 0, 0)
            records = [struct.pack("!HHHIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(name) for name in given]
            reply_to.sendto(head + data[12:end] + b"".join(records), self.client_address)

    with socketserver.ThreadingUDPServer(("127.0.0.11", 53), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield names
        finally:
            server.shutdown()
            thread.join()
