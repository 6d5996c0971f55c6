"""The authorization token of a project's webhooks for our server.

All functions raise ConfigError if Label Studio does not answer or refuses.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from trainer.labelstudio.client import ProjectClient

_AUTHORIZATION: Final = "Authorization"
_BEARER: Final = "Bearer "
_ORIGINAL: Final = "X-Labelnext-Former-Authorization"
"""Header that keeps the original value in the webhook itself, rather than on a disk."""


def set_webhook_token(client: ProjectClient, url_prefixes: Sequence[str], token: str) -> int:
    """Set the `Authorization: Bearer` header of the webhooks for URLs with one of the prefixes.

    An original header is kept under another name for `clear_webhook_token`. Returns the number of changed webhooks.
    """

    def change(headers: Mapping[str, str]) -> Mapping[str, str]:
        before = headers.get(_AUTHORIZATION, "")
        kept = {_ORIGINAL: before} if before and not before.startswith(_BEARER) else {}
        return {**headers, **kept, _AUTHORIZATION: _BEARER + token}

    return _change_webhooks(client, url_prefixes, change)


def clear_webhook_token(client: ProjectClient, url_prefixes: Sequence[str]) -> int:
    """Undo `set_webhook_token`, and return the number of changed webhooks."""

    def change(headers: Mapping[str, str]) -> Mapping[str, str]:
        if not headers.get(_AUTHORIZATION, "").startswith(_BEARER):
            return headers
        original = {_AUTHORIZATION: headers[_ORIGINAL]} if _ORIGINAL in headers else {}
        return {name: value for name, value in headers.items() if name not in {_AUTHORIZATION, _ORIGINAL}} | original

    return _change_webhooks(client, url_prefixes, change)


def _change_webhooks(
    client: ProjectClient, url_prefixes: Sequence[str], change: Callable[[Mapping[str, str]], Mapping[str, str]]
) -> int:
    prefixes = tuple(prefix.rstrip("/") + "/" for prefix in url_prefixes)

    def parse(hooks: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, str]]:
        ours = {
            hook["id"]: hook["headers"] or {} for hook in hooks if (hook["url"].rstrip("/") + "/").startswith(prefixes)
        }
        return {int(number): new for number, headers in ours.items() if (new := change(headers)) != headers}

    changed = client.read("/api/webhooks/", parse, resource="webhooks", query={"project": client.project})
    for number, headers in changed.items():
        client.send("PATCH", f"/api/webhooks/{number}/", resource=f"webhook {number}", body={"headers": headers})
    return len(changed)
