import pytest

from trainer.labelstudio.webhooks import clear_webhook_token, set_webhook_token


def test_a_header_is_put_on_our_webhooks_alone(pets):
    """Other webhooks must not get our secret; other headers stay; an empty list of URLs matches none."""
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


@pytest.mark.parametrize("before", [{}, {"Authorization": "Basic YTpi", "X-Team": "a"}], ids=["none", "login"])
def test_our_webhooks_can_be_put_back_as_they_were(pets, before):
    pets.webhooks = {1: {"id": 1, "url": "http://server:9090/webhook", "headers": dict(before)}}
    for token in ("secret", "secret", "new secret"):
        set_webhook_token(pets.client, ["http://server:9090"], token)
        assert pets.webhooks[1]["headers"]["Authorization"] == f"Bearer {token}"
    assert clear_webhook_token(pets.client, ["http://server:9090"]) == 1
    assert pets.webhooks[1]["headers"] == before
    assert clear_webhook_token(pets.client, ["http://server:9090"]) == 0
