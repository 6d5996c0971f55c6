"""Replicas behind haproxy: clients do not notice restarts, drains, crashes and version swaps."""

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
    with image_host([picture.path for picture in pictures]) as host:
        yield host


@pytest.fixture(scope="module")
def repository(folder: Path) -> Repository:
    repository = Repository(folder / "models")
    publish(repository, seed=1)
    return repository


@pytest.fixture(scope="module")
def servers(folder: Path, repository: Repository, images: ImageHost) -> Iterator[Fleet]:
    settings = {"LABELNEXT_POLL_S": "0.2", "LABELNEXT_ALLOWED_ORIGINS": images.url}
    with fleet(repository.root, replicas=3, folder=folder / "logs", settings=settings) as servers:
        yield servers


@pytest.fixture
def references(images: ImageHost, pictures: tuple[Picture, ...]) -> list[str]:
    return [images.reference(picture.path) for picture in pictures]


def test_no_request_is_lost_while_servers_are_killed_drained_and_swap_versions(
    servers: Fleet, repository: Repository, references: list[str]
):
    """Under load, a worker, a server and a master are killed, a server is drained, and a version is published."""
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
        wait_until(lambda: not second.ready, "the orphaned worker to stop", timeout_s=15)
        second.stop()
        second.start()
        servers.wait_until_ready()
    assert len(replies) > 100
    assert sum(reply.failed for reply in replies) == 0
    assert max(reply.seconds for reply in replies) < 15
    assert {version for reply in replies for version in reply.versions} == set(repository.versions())


@dataclass
class Slow:
    """Two servers, and a host that sends an image only after `release` is set."""

    servers: Fleet
    host: Host
    release: threading.Event
    pool: ThreadPoolExecutor

    @property
    def url(self) -> str:
        return f"{self.host.url}/slow.png"

    def await_requests(self, count: int = 1) -> None:
        wait_until(lambda: len(self.host.requests_to("/slow.png")) == count, "a server to request the image")


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


def test_the_proxy_retries_a_request_whose_server_died(slow: Slow, pictures: tuple[Picture, ...]):
    """Even if its body, which the proxy buffers, has a megabyte."""
    first, second = slow.servers.replicas
    second.stop()
    client = Client(slow.servers.url, LABELS)
    reply = slow.pool.submit(client.predict, [slow.url, pictures[-1].inline])
    slow.await_requests()
    second.start()
    second.wait_until_ready()
    wait_until(lambda: client.predict([pictures[0].inline]).failed == 0 and _predicted(second) > 0, "the second's turn")
    first.kill()
    slow.await_requests(2)
    slow.release.set()
    assert reply.result(30).failed == 0


def test_requests_are_not_delayed_by_a_draining_server(slow: Slow, pictures: tuple[Picture, ...]):
    """It answers requests in progress, and refuses connections, so that the proxy uses another server."""
    drained = slow.servers.replicas[1]
    running = slow.pool.submit(Client(drained.url, LABELS).predict, [slow.url])
    slow.await_requests()
    drain = slow.pool.submit(drained.drain)
    client = Client(slow.servers.url, LABELS)
    replies = [client.predict([pictures[0].inline]) for _ in range(100)]
    assert sum(reply.failed for reply in replies) == 0
    assert max(reply.seconds for reply in replies) < 5
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", drained.port), timeout=5)
    assert not running.done()
    slow.release.set()
    assert running.result(30).failed == 0
    assert drain.result(30) < 30


def test_the_proxy_answers_503_at_once_if_there_is_no_server(repository: Repository, tmp_path: Path):
    """As JSON and with Retry-After."""
    with fleet(repository.root, replicas=1, folder=tmp_path, settings={}) as servers:
        servers.replicas[0].kill()
        reply = urllib3.request("POST", f"{servers.url}/predict", json={}, retries=False, timeout=30)
    assert (reply.status, reply.headers["Retry-After"], reply.json()["error"]) == (503, "5", "unavailable")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to replace Docker's DNS on port 53")
def test_the_proxy_uses_every_server_that_docker_names(tmp_path: Path):
    """Requests are spread over all addresses of the service, and an address that is added is found."""
    addresses = ["127.0.3.1", "127.0.3.2"]
    bind = f"127.0.0.1:{free_port()}"
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.11\n")
    with ExitStack() as stack:
        records = stack.enter_context(_docker_dns(addresses))
        for address in [*addresses, "127.0.3.3"]:
            # Replies with the address to all paths, on the port of the servers in compose.yaml.
            answer = reply(json.dumps({"address": address}).encode())
            stack.enter_context(host(address=address, port=9090)).default = answer
        command: list[str | Path] = ["unshare", "--mount", "sh", "-c", _IN_A_CONTAINER, "haproxy"]
        command += [resolv_conf, PROXY_CONFIG, DOCKER_CONFIG]
        environment = {"LABELNEXT_PROXY_BIND": bind}
        stack.enter_context(running("haproxy", command, log=tmp_path / "log", environment=environment))

        def answering_addresses() -> set[str | None]:
            retries = urllib3.Retry(connect=8, backoff_factor=0.05)  # haproxy may still be starting
            replies = [urllib3.request("GET", f"http://{bind}/", retries=retries) for _ in range(12)]
            return {json.loads(reply.data).get("address") for reply in replies}

        wait_until(lambda: answering_addresses() == set(addresses), "both servers", timeout_s=30)
        records.append("127.0.3.3")
        wait_until(lambda: answering_addresses() == set(records), "the third server", timeout_s=30)


_IN_A_CONTAINER = 'mount --bind "$1" /etc/resolv.conf && exec haproxy -db -f "$2" -f "$3"'
"""Runs haproxy with a resolv.conf that names Docker's DNS, as in a container."""


def _predicted(replica) -> float:
    samples = replica.metrics()
    return sum(value for name, value in samples.items() if "http_requests_total" in name and '"/predict"' in name)


@contextmanager
def _docker_dns(addresses: list[str]) -> Iterator[list[str]]:
    """Context manager for a DNS server that returns a list of addresses as A records, as Docker does for a service.

    Yields the list, which may be changed.
    """
    addresses = list(addresses)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, reply_to = self.request
            end = data.index(b"\0", 12) + 5
            (kind,) = struct.unpack("!H", data[end - 4 : end - 2])
            answers = addresses if kind == 1 else []
            head = data[:2] + struct.pack("!HHHHH", 0x8180, 1, len(answers), 0, 0)
            records = [struct.pack("!HHHIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(each) for each in answers]
            reply_to.sendto(head + data[12:end] + b"".join(records), self.client_address)

    with socketserver.ThreadingUDPServer(("127.0.0.11", 53), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield addresses
        finally:
            server.shutdown()
            thread.join()
