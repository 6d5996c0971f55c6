import pytest

from contract.errors import ConfigError
from contract.settings import SharedSettings

SECRETS = {
    "LABELNEXT_LABEL_STUDIO_TOKEN": "s3cret",
    "LABELNEXT_BASIC_AUTH": "studio:s3cret:with a colon",
    "LABELNEXT_WEBHOOK_SECRET": "s3cret-of-events",
}


def test_unset_and_empty_variables_give_the_defaults():
    """Compose passes unset variables as empty strings. Unknown variables are ignored."""
    empty = dict.fromkeys([*SECRETS, "LABELNEXT_MODELS", "LABELNEXT_MIRROR", "LABELNEXT_MASKS"], " ")
    assert SharedSettings.read({"LABELNEXT_COLOUR": "red"}) == SharedSettings.read(empty) == SharedSettings()


def test_all_faults_are_reported_together():
    invalid = {
        "LABELNEXT_MODELS": "s3://x//y",
        "LABELNEXT_VERIFY_KEY": "key",
        "LABELNEXT_ALLOWED_ORIGINS": "bad,worse",
        "LABELNEXT_MAX_MEGAPIXELS": "0",
    }
    with pytest.raises(ConfigError) as caught:
        SharedSettings.read({**invalid, "LABELNEXT_MIRROR": "/models", "LABELNEXT_MASKS": "independent"})
    renamed, removed, *faults = [fault.split() for fault in str(caught.value).split("; ")]
    assert " ".join(renamed) == "LABELNEXT_MIRROR is now called LABELNEXT_VERSION_CACHE"
    assert " ".join(removed) == "LABELNEXT_MASKS is no longer supported, masks are always the version's own: unset it"
    assert [fault[:3] for fault in faults] == [[name, "must", "be"] for name in invalid]
    assert [fault[-1] for fault in faults] == [repr(value) for value in invalid.values()]


def test_secrets_are_not_shown():
    read = SharedSettings.read(SECRETS)
    assert (read.basic_auth, read.webhook_secret) == ("studio:s3cret:with a colon", "s3cret-of-events")
    assert "s3cret" not in repr(read)
    names = [name.removeprefix("LABELNEXT_").lower() for name in SECRETS]
    assert [read.describe()[name] for name in names] == ["set"] * len(names)
    assert [SharedSettings().describe()[name] for name in names] == [None] * len(names)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LABEL_STUDIO_URL", "http://user:s3cret@studio"),
        ("BASIC_AUTH", "s3cret"),
        ("BASIC_AUTH", ":s3cret"),
        ("BASIC_AUTH", "s3cret:"),
        ("BASIC_AUTH", "user:s3crét"),
        ("WEBHOOK_SECRET", "s3cret with spaces"),
        ("WEBHOOK_SECRET", "s3cret\nX-Header: 1"),
        ("WEBHOOK_SECRET", "s3crét"),
    ],
)
def test_rejects_invalid_secrets_without_showing_them(name, text):
    """Neither the message nor its cause contains the value."""
    with pytest.raises(ConfigError, match=f"LABELNEXT_{name} must be ") as caught:
        SharedSettings.read({f"LABELNEXT_{name}": text})
    assert "s3c" not in str(caught.value)
    assert caught.value.__context__ is None
