"""A project's webhooks in Label Studio, and the token that those carry which lead to our server."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from trainer.labelstudio.client import ProjectClient

_AUTHORIZATION: Final = "Authorization"
_BEARER: Final = "Bearer "
_FORMER: Final = "X-Labelnext-Former-Authorization"
"""Where a webhook keeps what it carried before our token, rather than anybody's disk."""


def set_webhook_token(client: ProjectClient, url_prefixes: Sequence[str], token: str) -> int:
    """Have a project's webhooks for addresses that begin so carry a token, and return how many had to be changed.

    It is sent as `Authorization: Bearer ...`; what else they carried as that stays with them, under another name, for
    `clear_webhook_token`. Webhooks for other addresses are left alone.
    """

    def change(headers: Mapping[str, str]) -> Mapping[str, str]:
        before = headers.get(_AUTHORIZATION, "")
        kept = {_FORMER: before} if before and not before.startswith(_BEARER) else {}
        return {**headers, **kept, _AUTHORIZATION: _BEARER + token}

    return _change_webhooks(client, url_prefixes, change)


def clear_webhook_token(client: ProjectClient, url_prefixes: Sequence[str]) -> int:
    """Have webhooks carry what they did before `set_webhook_token`, and return how many had to be changed."""

    def change(headers: Mapping[str, str]) -> Mapping[str, str]:
        if not headers.get(_AUTHORIZATION, "").startswith(_BEARER):
            return headers
        former = {_AUTHORIZATION: headers[_FORMER]} if _FORMER in headers else {}
        return {name: value for name, value in headers.items() if name not in {_AUTHORIZATION, _FORMER}} | former

    return _change_webhooks(client, url_prefixes, change)


def _change_webhooks(
    client: ProjectClient, url_prefixes: Sequence[str], change: Callable[[Mapping[str, str]], Mapping[str, str]]
) -> int:
    stems = tuple(prefix.rstrip("/") + "/" for prefix in url_prefixes)

    def make(hooks: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, str]]:
        ours = {
            hook["id"]: hook["headers"] or {} for hook in hooks if (hook["url"].rstrip("/") + "/").startswith(stems)
        }
        return {int(number): wanted for number, headers in ours.items() if (wanted := change(headers)) != headers}

    changed = client.read("/api/webhooks/", make, what="webhooks", query={"project": client.project})
    for number, wanted in changed.items():
        client.send("PATCH", f"/api/webhooks/{number}/", what=f"webhook {number}", body={"headers": wanted})
    return len(changed)
