import json
import logging
import logging.config
import sys

from server.observe.logs import JsonFormatter, accept_request_id, request_id


def read_line(message, *values, exc_info=None, **extra):
    """Return the parsed line of JSON for a record."""
    record = logging.LogRecord("server.x", logging.INFO, "x.py", 1, message, values, exc_info)
    record.__dict__.update(extra)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    return json.loads(line)


def test_a_record_is_one_line_of_json_with_its_extras():
    """Values of other types become strings."""
    entry = read_line("hello\n%s", "you", images=3, path=object)
    assert entry.pop("time").endswith("+00:00")
    extras = {"images": 3, "path": "<class 'object'>"}
    assert entry == {"level": "info", "logger": "server.x", "message": "hello\nyou", **extras}


def test_a_record_has_request_id_and_exception():
    token = request_id.set("abc")
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        entry = read_line("x", exc_info=sys.exc_info())
    finally:
        request_id.reset(token)
    assert entry["request_id"] == "abc"
    assert "RuntimeError: broken" in entry["exception"]


def test_a_request_id_is_accepted_only_if_harmless():
    """Clients cannot forge log lines."""
    for offered in ("abc-123_X", "a", "x" * 64):
        assert accept_request_id(offered) == offered
    for offered in (None, "", "x" * 65, "a b", "a\n", 'a"', "ä"):
        generated = accept_request_id(offered)
        assert generated != offered
        assert accept_request_id(generated) == generated
