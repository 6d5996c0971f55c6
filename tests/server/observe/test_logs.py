import json
import logging
import logging.config

import pytest

from server.observe.logs import JsonFormatter, accept_request_id, logging_config, request_id


def make_record(message="hello %s", *values, **extra):
    record = logging.LogRecord("server.x", logging.INFO, "x.py", 1, message, values, None)
    record.__dict__.update(extra)
    return record


def test_a_record_is_one_line_of_json_with_its_extras():
    """Message, level, logger and what was given as extra are fields."""
    line = JsonFormatter().format(make_record("hello\n%s", "you", images=3))
    assert "\n" not in line
    entry = json.loads(line)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {"level": "info", "logger": "server.x", "message": "hello\nyou", "images": 3}


def test_a_record_carries_the_request_it_belongs_to():
    """The id comes from the context, so that no caller has to pass it on."""
    token = request_id.set("abc")
    try:
        assert json.loads(JsonFormatter().format(make_record("x")))["request_id"] == "abc"
    finally:
        request_id.reset(token)
    assert "request_id" not in json.loads(JsonFormatter().format(make_record("x")))


def test_an_exception_is_a_field():
    """A traceback does not break the line."""
    try:
        raise RuntimeError("broken")
    except RuntimeError as err:
        record = make_record("x")
        record.exc_info = (type(err), err, err.__traceback__)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "RuntimeError: broken" in json.loads(line)["exception"]


def test_what_json_cannot_hold_is_written_as_text():
    """Logging never fails for the type of a value."""
    assert json.loads(JsonFormatter().format(make_record("x", path=object)))["path"] == "<class 'object'>"


def test_the_configuration_is_one_that_logging_accepts():
    """Gunicorn and the command line hand it to dictConfig."""
    logging.config.DictConfigurator(logging_config()).configure_formatter(logging_config()["formatters"]["json"])


@pytest.mark.parametrize("offered", ["abc-123_X", "a", "x" * 64])
def test_a_harmless_request_id_is_kept(offered):
    """The client's own id is the one in the logs."""
    assert accept_request_id(offered) == offered


@pytest.mark.parametrize("offered", [None, "", "x" * 65, "a b", "a\n", 'a"', "ä"])
def test_any_other_request_id_is_replaced(offered):
    """Nothing that a client sends can forge a log line."""
    made = accept_request_id(offered)
    assert made != offered
    assert accept_request_id(made) == made
