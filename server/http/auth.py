"""Who may ask what: basic auth for the server, and a secret of its own for Label Studio's event webhooks.

Label Studio sends a backend's basic auth with everything but events, to which only headers can be added that somebody
put on the webhook. Nothing that was sent or set is ever logged.
"""

import hmac
import logging
from typing import Final

from werkzeug.datastructures import Authorization, WWWAuthenticate
from werkzeug.exceptions import Unauthorized

OPEN: Final = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
"""Asked by containers and monitoring, which have no password. They hold figures, and neither images nor secrets."""

WEBHOOK: Final = "/webhook"

_log = logging.getLogger(__name__)


class Guard:
    """Lets a request to a route pass, or refuses it.

    A password protects every route but those in `OPEN`, and /webhook takes the secret as well. A secret alone protects
    /webhook and nothing else; Start Training, with which Label Studio sends the backend's basic auth or nothing at all,
    is then refused.
    """

    def __init__(self, basic_auth: str | None, webhook_secret: str | None) -> None:
        """Take `user:password` and the secret; None for what is not to be asked for."""
        self._basic_auth = basic_auth
        self._secret = webhook_secret

    def check(self, route: str | None, authorization: Authorization | None) -> None:
        """Raise Unauthorized if credentials are missing or wrong; `route` is None where there is none by its path."""
        is_closed = self._basic_auth is not None or (route == WEBHOOK and self._secret is not None)
        if route in OPEN or not is_closed or self._accepts(route, authorization):
            return
        if route == WEBHOOK:
            _log.warning(
                "a webhook without valid credentials was refused; with Start Training Label Studio sends the backend's "
                "basic auth (LABELNEXT_BASIC_AUTH), with events the webhook's headers (LABELNEXT_WEBHOOK_SECRET)"
            )
        scheme = "bearer" if self._basic_auth is None else "basic"
        raise Unauthorized(
            "credentials are missing or wrong; Label Studio's stand in the project under Settings > Model",
            www_authenticate=WWWAuthenticate(scheme, {"realm": "Labelnext server"}),
        )

    def _accepts(self, route: str | None, given: Authorization | None) -> bool:
        if given is None:
            return False
        if given.type == "basic" and self._basic_auth is not None:
            user, _, password = self._basic_auth.partition(":")
            # Both parts are compared whatever comes of the first: the time that it takes tells nothing.
            return _same(given.username or "", user) & _same(given.password or "", password)
        if given.type == "bearer" and route == WEBHOOK and self._secret is not None:
            return _same(given.token or "", self._secret)
        return False


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogateescape"), expected.encode(errors="surrogateescape"))
