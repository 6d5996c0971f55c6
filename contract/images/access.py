"""The Authorization header for Label Studio, for either kind of token that it gives out.

A personal access token is a refresh token: sent as it is, it gets 401. It is exchanged for an access token, which lasts
five minutes. A legacy token is sent as it is. How the exchange is made is the caller's business.
"""

import base64
import json
import re
import threading
import time
from collections.abc import Callable
from typing import Final

from contract.errors import ConfigError

ACCESS_TOKEN_S: Final = 300
"""How long Label Studio honours an access token, in seconds."""

_EARLY_S: Final = 30  # an access token is renewed this long before it ends


class Token:
    """A token of Label Studio, and the access token that all threads share where it needs one.

    Raises:
        ConfigError: if the text cannot be a token.
    """

    def __init__(self, token: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token.strip()
        if not re.fullmatch(r"[!-~]*", self._token):
            raise ConfigError(
                "expected a Label Studio token of printable ASCII without spaces, got something else; copy "
                "LABELNEXT_LABEL_STUDIO_TOKEN from the account settings again"
            )
        kind = _jwt_kind(self._token)
        self.renewable = kind == "refresh"
        self._fixed = (f"Bearer {self._token}" if kind else f"Token {self._token}") if self._token else None
        self._clock = clock
        self._lock = threading.Lock()
        self._header: str | None = None
        self._renew_at = 0.0

    def header(self, exchange: Callable[[str], str], *, timeout_s: float, refused: str | None = None) -> str | None:
        """The header to send; None without a token.

        Args:
            exchange: from the personal access token to an access token; called by one thread at a time.
            timeout_s: how long to wait for another thread's exchange.
            refused: a header that got 401; renewed unless another thread has done so.

        Raises:
            TimeoutError: if another thread's exchange takes longer than `timeout_s`.
        """
        if not self.renewable:
            return self._fixed
        if not self._lock.acquire(timeout=timeout_s):
            raise TimeoutError("Label Studio is slow to give out an access token")
        try:
            if self._header in {None, refused} or self._clock() >= self._renew_at:
                self._header = f"Bearer {exchange(self._token)}"
                self._renew_at = self._clock() + ACCESS_TOKEN_S - _EARLY_S
            return self._header
        finally:
            self._lock.release()


def _jwt_kind(token: str) -> str | None:
    """The kind that a JSON web token says it is; None for a legacy token."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return str(claims["token_type"])
    except (ValueError, KeyError, TypeError):
        return None
