import pytest

from trainer.labelstudio.webhooks import clear_webhook_token, set_webhook_token


def test_the_token_is_set_only_for_the_servers_webhooks(pets):
    """Other headers are kept."""
    pets.webhooks = {
        1: {"id": 1, "url": "http://server:9090/webhook", "headers": {"X-Team": "a"}},
        2: {"id": 2, "url": "http://server:9090", "headers": None},
        3: {"id": 3, "url": "http://server:90901/webhook", "headers": {}},
        4: {"id": 4, "url": "http://elsewhere/http://server:9090/webhook", "headers": {}},
    }
    assert set_webhook_token(pets.client, ["http://server:9090/"], "secret") == 2
    assert {number: hook["headers"] for number, hook in pets.webhooks.items()} == {
        1: {"X-Team": "a", "Authorization": "Bearer secret"},
        2: {"Authorization": "Bearer secret"},
        3: {},
        4: {},
    }
    assert set_webhook_token(pets.client, ["http://server:9090/"], "secret") == 0
    assert set_webhook_token(pets.client, [], "another") == 0
    assert clear_webhook_token(pets.client, []) == 0


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic YTpi", "X-Team": "a"}], ids=["none", "login"])
def test_clearing_the_token_restores_the_headers(pets, headers):
    pets.webhooks = {1: {"id": 1, "url": "http://server:9090/webhook", "headers": dict(headers)}}
    for token in ("secret", "secret", "new secret"):
        set_webhook_token(pets.client, ["http://server:9090"], token)
        assert pets.webhooks[1]["headers"]["Authorization"] == f"Bearer {token}"
    assert clear_webhook_token(pets.client, ["http://server:9090"]) == 1
    assert pets.webhooks[1]["headers"] == headers
    assert clear_webhook_token(pets.client, ["http://server:9090"]) == 0
