import socket

import pytest
import urllib3

from bench.harness.hosts import host, image_host, reply, trickle
from contract.errors import FetchError
from contract.images.fetch import Fetcher, FetchSettings


def get(url, **headers):
    return urllib3.request("GET", url, headers=headers, retries=False)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", ""])
def test_a_host_answers_as_told_and_remembers_who_asked(address):
    """By path without its query; a contact is counted even if nothing is asked, and none while a connection is kept."""
    with host(address=address) as state, urllib3.PoolManager(retries=False) as http:
        url = state.serve("/a.png", b"picture", etag='"1"')
        found = http.request("GET", f"{url}?x=1", headers={"X-Secret": "1"})
        assert (found.status, found.data, found.headers["ETag"]) == (200, b"picture", '"1"')
        assert http.request("POST", f"{state.url}/b", body=b"text").status == 404
        with socket.create_connection((state.address, state.port)) as connection:
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        state.otherwise = reply(status="999 Nonsense", connection="close")
        assert http.request("GET", state.url).status == 999
        assert [(each.path, each.body) for each in state.requests] == [("/a.png?x=1", b""), ("/b", b"text"), ("/", b"")]
        assert state.requests[0].headers["X-Secret"] == "1"
        assert state.contacts == 2


def test_a_host_that_trickles_does_so_until_it_closes():
    """A byte now and then comes, and the end of the block ends it."""
    with host() as state, socket.create_connection(("127.0.0.1", state.port), timeout=10) as connection:
        state.serve("/slow", trickle(b"HTTP/1.1 200 OK\r\n\r\n", every_s=0.01))
        connection.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
        received = b""
        while len(received) < 25:
            received += connection.recv(100)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n\r\naaa")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / "red ants").mkdir()
    images = [folder / "red ants" / "1.jpg", folder / "2.png"]
    for image in images:
        image.write_bytes(b"an ant")
    (folder / "notes.txt").write_text("no image")
    with image_host(images) as each:
        yield each, images[0]


def test_an_image_is_sent_once_and_then_found_unchanged(running):
    """Who names the ETag gets 304 and no bytes, who names another one the image; all of it is counted."""
    images, image = running
    assert images.counts() == {"200": 0, "304": 0}
    url = images.reference(image).replace(" ", "%20")
    first = get(url)
    again = get(url, **{"If-None-Match": first.headers["ETag"]})
    other = get(url, **{"If-None-Match": '"other"'})
    assert (first.status, first.data, first.headers["Content-Type"]) == (200, b"an ant", "image/jpeg")
    assert (again.status, again.data) == (304, b"")
    assert other.data == b"an ant"
    assert images.counts() == {"200": 2, "304": 1}


def test_only_images_are_served(running):
    """Below the lowest folder that holds them; other files and other folders are not there."""
    images, _ = running
    assert [get(f"{images.url}/{path}").status for path in ("notes.txt", "../1.jpg", "")] == [404, 404, 404]


def test_a_reference_is_one_that_a_server_fetches(running):
    """With its spaces and all."""
    images, image = running
    with Fetcher(FetchSettings(allowed_origins=(images.url,))) as fetcher:
        assert fetcher.fetch(images.reference(image)) == b"an ant"
        with pytest.raises(FetchError, match="404"):
            fetcher.fetch(f"{images.url}/3.png")
