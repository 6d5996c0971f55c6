"""Label Studio's API for one person: requests with a personal access token, replies as JSON.

Owns the exchange of the token; knows no endpoint but those of the exchange.
"""

from __future__ import annotations

import json
import time
from typing import Any

import urllib3

from demo.errors import LabelStudioError

_ACCESS_TOKEN_S = 200.0  # Label Studio's live 300 s; renewed early, a request may take long
_TIMEOUT = urllib3.Timeout(connect=5.0, read=300.0)  # retrieving predictions answers only when all are stored


class Session:
    """Requests to one Label Studio, made with a personal access token.

    Args:
        url: where Label Studio answers, such as "http://127.0.0.1:8080".
        token: a personal access token; Label Studio hands one out under Account & Settings.
    """

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._access = ""
        self._renew_at = 0.0
        self._http = urllib3.PoolManager(retries=False, timeout=_TIMEOUT)

    def get(self, path: str, **parameters: str | int) -> Any:
        """GET `path`, such as "/api/projects", with query parameters."""
        return self._request("GET", path, fields={name: str(value) for name, value in parameters.items()})

    def post(self, path: str, body: object) -> Any:
        """POST `body` as JSON."""
        return self._request("POST", path, json=body)

    def patch(self, path: str, body: object) -> Any:
        """PATCH `body` as JSON."""
        return self._request("PATCH", path, json=body)

    def delete(self, path: str) -> None:
        """DELETE what `path` names."""
        self._request("DELETE", path)

    def upload(self, path: str, files: list[tuple[str, bytes]]) -> Any:
        """POST `files`, pairs of name and content, as one multipart form."""
        return self._request("POST", path, fields=[(name, (name, content)) for name, content in files])

    def _request(self, method: str, path: str, **options: Any) -> Any:
        return self._send(method, path, headers={"Authorization": f"Bearer {self._access_token()}"}, **options)

    def _access_token(self) -> str:
        if time.monotonic() >= self._renew_at:
            self._access = self._send("POST", "/api/token/refresh/", json={"refresh": self._token})["access"]
            self._renew_at = time.monotonic() + _ACCESS_TOKEN_S
        return self._access

    def _send(self, method: str, path: str, **options: Any) -> Any:
        try:
            reply = self._http.request(method, self.url + path, **options)
        except urllib3.exceptions.HTTPError as err:
            raise LabelStudioError(f"{method} {path}: no answer from {self.url}: {err}") from err
        if not 200 <= reply.status < 300:
            text = reply.data[:2000].decode(errors="replace")
            raise LabelStudioError(f"{method} {path}: expected a 2xx reply, got {reply.status}: {text}")
        return json.loads(reply.data) if reply.data else None
