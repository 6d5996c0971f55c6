import json
import logging
import logging.config
import sys

from server.observe.logs import JsonFormatter, accept_request_id, request_id


def read_line(message, *values, exc_info=None, **extra):
    """Return what a record's line of JSON holds."""
    record = logging.LogRecord("server.x", logging.INFO, "x.py", 1, message, values, exc_info)
    record.__dict__.update(extra)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    return json.loads(line)


def test_a_record_is_one_line_of_json_with_its_extras():
    """What JSON cannot hold is written as text: logging never fails for the type of a value."""
    entry = read_line("hello\n%s", "you", images=3, path=object)
    assert entry.pop("time").endswith("+00:00")
    extras = {"images": 3, "path": "<class 'object'>"}
    assert entry == {"level": "info", "logger": "server.x", "message": "hello\nyou", **extras}


def test_a_record_carries_the_request_it_belongs_to_and_its_exception():
    token = request_id.set("abc")
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        entry = read_line("x", exc_info=sys.exc_info())
    finally:
        request_id.reset(token)
    assert entry["request_id"] == "abc"
    assert "RuntimeError: broken" in entry["exception"]


def test_a_request_id_is_kept_only_if_it_is_harmless():
    """The client's own is the one in the logs, but none can forge a line."""
    for offered in ("abc-123_X", "a", "x" * 64):
        assert accept_request_id(offered) == offered
    for offered in (None, "", "x" * 65, "a b", "a\n", 'a"', "ä"):
        made = accept_request_id(offered)
        assert made != offered
        assert accept_request_id(made) == made
