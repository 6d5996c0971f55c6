"""Request bodies, which have come in whole: parsed as JSON."""

import json
from typing import NoReturn

from werkzeug.exceptions import ClientDisconnected
from werkzeug.wrappers import Request

from contract.errors import RequestError


def read_json(request: Request) -> object:
    """Return the body as JSON; NaN and Infinity are not JSON.

    Raises:
        RequestError: if it is not JSON.
        RequestEntityTooLarge: if it is larger than the application takes.
    """
    body = request.get_data(cache=False)
    if (request.content_length or 0) > len(body):
        raise ClientDisconnected
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as err:
        raise RequestError(f"the body must be JSON, got {len(body)} bytes that are not") from err


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
