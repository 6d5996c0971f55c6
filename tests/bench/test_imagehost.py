import json
import threading

import pytest
import urllib3

from bench.imagehost import COUNTS, ImageHost


@pytest.fixture
def url(tmp_path):
    (tmp_path / "red ants").mkdir()
    (tmp_path / "red ants" / "1.jpg").write_bytes(b"an ant")
    (tmp_path / "notes.txt").write_text("no image")
    server = ImageHost(tmp_path, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def get(url, **headers):
    return urllib3.request("GET", url, headers=headers, retries=False)


def test_an_image_is_sent_once_and_then_found_unchanged(url):
    """Who names the ETag gets 304 and no bytes, and both are counted."""
    first = get(f"{url}/red%20ants/1.jpg")
    again = get(f"{url}/red%20ants/1.jpg", **{"If-None-Match": first.headers["ETag"]})
    assert (first.status, first.data, first.headers["Content-Type"]) == (200, b"an ant", "image/jpeg")
    assert (again.status, again.data) == (304, b"")
    assert json.loads(get(url + COUNTS).data) == {"200": 1, "304": 1}


def test_an_image_that_has_changed_is_sent(url):
    """Another ETag than the image's is answered with the image."""
    assert get(f"{url}/red%20ants/1.jpg", **{"If-None-Match": '"other"'}).data == b"an ant"


def test_only_images_are_served(url):
    """Other files and other folders are not there."""
    assert [get(f"{url}/{path}").status for path in ("notes.txt", "../1.jpg", "")] == [404, 404, 404]
