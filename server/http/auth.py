"""Authorisation: basic auth for the server, and a bearer token for Label Studio's event webhooks.

Label Studio sends a backend's basic auth with all requests except events, which only carry the headers configured for
the webhook. Credentials are never logged.
"""

import hmac
import logging
from typing import Final

from werkzeug.datastructures import Authorization, WWWAuthenticate
from werkzeug.exceptions import Unauthorized

OPEN: Final = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
"""Routes for containers and monitoring, which have no password; they show neither images nor secrets."""

WEBHOOK: Final = "/webhook"

_log = logging.getLogger(__name__)


class Guard:
    """Checks the credentials of requests.

    Basic auth protects all routes except those in `OPEN`; /webhook accepts the webhook secret as well. A secret without
    basic auth protects only /webhook, and refuses Start Training, with which Label Studio sends basic auth or nothing.
    """

    def __init__(self, basic_auth: str | None, webhook_secret: str | None) -> None:
        """Require `user:password` and the webhook secret, unless they are None."""
        self._basic_auth = basic_auth
        self._secret = webhook_secret

    def check(self, route: str | None, authorization: Authorization | None) -> None:
        """Raise Unauthorized if credentials are missing or wrong; `route` is None if no route has the path."""
        is_protected = self._basic_auth is not None or (route == WEBHOOK and self._secret is not None)
        if route in OPEN or not is_protected or self._accepts(route, authorization):
            return
        if route == WEBHOOK:
            _log.warning(
                "a webhook without valid credentials was refused; with Start Training Label Studio sends the backend's "
                "basic auth (LABELNEXT_BASIC_AUTH), with events the webhook's headers (LABELNEXT_WEBHOOK_SECRET)"
            )
        scheme = "bearer" if self._basic_auth is None else "basic"
        raise Unauthorized(
            "credentials are missing or wrong; set Label Studio's in the project under Settings > Model",
            www_authenticate=WWWAuthenticate(scheme, {"realm": "Labelnext server"}),
        )

    def _accepts(self, route: str | None, authorization: Authorization | None) -> bool:
        if authorization is None:
            return False
        if authorization.type == "basic" and self._basic_auth is not None:
            user, _, password = self._basic_auth.partition(":")
            # Both parts are always compared, so that the time taken reveals nothing.
            return _same(authorization.username or "", user) & _same(authorization.password or "", password)
        if authorization.type == "bearer" and route == WEBHOOK and self._secret is not None:
            return _same(authorization.token or "", self._secret)
        return False


def _same(actual: str, expected: str) -> bool:
    return hmac.compare_digest(actual.encode(errors="surrogateescape"), expected.encode(errors="surrogateescape"))
