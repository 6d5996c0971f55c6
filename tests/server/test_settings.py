from dataclasses import fields
from pathlib import Path

import pytest

from contract.errors import ConfigError
from server.settings import _PARSERS, Device, MaskPolicy, Precision, Score, Settings

SET = {
    "LABELNEXT_MODELS": "/srv/models",
    "LABELNEXT_MODEL": "birds",
    "LABELNEXT_BIND": "0.0.0.0:80",
    "LABELNEXT_THREADS": "4",
    "LABELNEXT_FETCH_THREADS": "3",
    "LABELNEXT_QUEUE_REQUESTS": "9",
    "LABELNEXT_QUEUE_IMAGES": "50",
    "LABELNEXT_PASSES": "50",
    "LABELNEXT_SCORE": "bald",
    "LABELNEXT_MASKS": "FRESH",
    "LABELNEXT_PROVIDER": "cuda",
    "LABELNEXT_PRECISION": "int8",
    "LABELNEXT_CACHE_DIR": "/srv/features",
    "LABELNEXT_CACHE_MB": "100",
    "LABELNEXT_POLL_S": "0.5",
    "LABELNEXT_MAX_BATCH_IMAGES": "64",
    "LABELNEXT_DEADLINE_S": "30",
    "LABELNEXT_MAX_BODY_BYTES": "1000",
    "LABELNEXT_LABEL_STUDIO_URL": "https://studio.example.org/",
    "LABELNEXT_LABEL_STUDIO_TOKEN": "s3cret",
    "LABELNEXT_LABEL_STUDIO_PUBLIC_URL": "https://studio.example.org/labels/",
    "LABELNEXT_BASIC_AUTH": "studio:s3cret:with a colon",
    "LABELNEXT_WEBHOOK_SECRET": "s3cret-of-events",
    "LABELNEXT_LOCAL_FILES_ROOT": "/srv/images",
    "LABELNEXT_VERIFY_KEY": "RWT/9m+og4isUpyk8iGW2RjY53oZpnrl1ErOe3Pq4B/4AJZTCk4Wz5TX",
    "LABELNEXT_ALLOWED_ORIGINS": "http://minio:9000, https://cdn.example.org",
}


def test_every_setting_is_read_from_its_variable():
    """All fields can be set, each by LABELNEXT_ and its name."""
    assert Settings.from_env(SET) == Settings(
        models=Path("/srv/models"),
        model="birds",
        bind="0.0.0.0:80",
        threads=4,
        fetch_threads=3,
        queue_requests=9,
        queue_images=50,
        passes=50,
        score=Score.BALD,
        masks=MaskPolicy.FRESH,
        provider=Device.CUDA,
        precision=Precision.INT8,
        cache_dir=Path("/srv/features"),
        cache_mb=100,
        poll_s=0.5,
        max_batch_images=64,
        deadline_s=30.0,
        max_body_bytes=1000,
        label_studio_url="https://studio.example.org",
        label_studio_token="s3cret",
        label_studio_public_url="https://studio.example.org/labels",
        basic_auth="studio:s3cret:with a colon",
        webhook_secret="s3cret-of-events",
        local_files_root=Path("/srv/images"),
        verify_key="RWT/9m+og4isUpyk8iGW2RjY53oZpnrl1ErOe3Pq4B/4AJZTCk4Wz5TX",
        allowed_origins=("http://minio:9000", "https://cdn.example.org"),
    )


def test_by_default_two_batches_and_every_thread_are_under_way():
    """One batch runs, one waits, and no thread is idle."""
    assert Settings(max_batch_images=8, fetch_threads=4).images_under_way == 20
    assert Settings(max_batch_images=8, fetch_threads=4, queue_images=3).images_under_way == 3


def test_every_field_has_a_parser():
    """A field that is added cannot be forgotten in the environment."""
    assert {item.name for item in fields(Settings)} == set(_PARSERS)


def test_unset_and_empty_variables_give_the_defaults():
    """Compose passes variables that are not set as empty strings."""
    assert Settings.from_env({}) == Settings.from_env(dict.fromkeys(SET, " ")) == Settings()


def test_all_faults_are_told_at_once():
    """One message names every variable that is wrong, what it must be and what it is."""
    wrong = {"LABELNEXT_THREADS": "0", "LABELNEXT_SCORE": "entropy", "LABELNEXT_POLL_S": "soon"}
    with pytest.raises(ConfigError) as caught:
        Settings.from_env(wrong)
    assert str(caught.value) == (
        "LABELNEXT_THREADS must be a whole number of at least 1, got '0'; "
        "LABELNEXT_SCORE must be one of agreement, bald, got 'entropy'; "
        "LABELNEXT_POLL_S must be a number of seconds above 0, got 'soon'"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BIND", "9090"),
        ("BIND", "localhost:"),
        ("BIND", ":9090"),
        ("BIND", "localhost:70000"),
        ("PASSES", "-1"),
        ("PASSES", "2.5"),
        ("PRECISION", "fp8"),
        ("CACHE_MB", "-1"),
        ("CACHE_MB", "all"),
        ("POLL_S", "nan"),
        ("DEADLINE_S", "inf"),
        ("DEADLINE_S", "0"),
        ("LABEL_STUDIO_URL", "studio.example.org"),
        ("LABEL_STUDIO_URL", "ftp://studio.example.org"),
        ("LABEL_STUDIO_PUBLIC_URL", "studio.example.org"),
        ("ALLOWED_ORIGINS", "http://good.example.org,bad"),
        ("VERIFY_KEY", "key"),
    ],
)
def test_nonsense_is_refused(name, text):
    """A value that cannot work is refused at the start, not when it is first used."""
    with pytest.raises(ConfigError, match=f"LABELNEXT_{name} must be "):
        Settings.from_env({f"LABELNEXT_{name}": text})


@pytest.mark.parametrize(
    ("text", "in_memory", "in_a_folder"), [("", 64, 4096), ("7", 7, 7), ("0", 0, 0)], ids=["unset", "set", "off"]
)
def test_the_caches_bound_follows_the_place(text, in_memory, in_a_folder):
    """Disks are larger than memory, unless a number is set; 0 turns the cache off in either place."""
    for folder, mebibytes in (("", in_memory), ("/srv/features", in_a_folder)):
        read = Settings.from_env({"LABELNEXT_CACHE_DIR": folder, "LABELNEXT_CACHE_MB": text})
        assert read.cache_bytes == mebibytes * 2**20


SECRETS = ("label_studio_token", "basic_auth", "webhook_secret")


def test_secrets_are_not_shown():
    """Neither the representation nor what is logged holds a token or a password, only whether there is one."""
    read = Settings.from_env(SET)
    assert "s3cret" not in repr(read)
    assert "s3cret" not in str(read.describe())
    assert [read.describe()[name] for name in SECRETS] == ["set"] * len(SECRETS)
    assert [Settings().describe()[name] for name in SECRETS] == [None] * len(SECRETS)


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
def test_a_secret_that_cannot_be_one_is_refused_unseen(name, text):
    """The message says what must be, and not what it was."""
    with pytest.raises(ConfigError, match=f"LABELNEXT_{name} must be ") as caught:
        Settings.from_env({f"LABELNEXT_{name}": text})
    assert "s3c" not in str(caught.value)


def test_hosts_are_names_without_scheme_and_port():
    """As they stand in the header Host, port aside; capitals do not count."""
    named = {"LABELNEXT_ALLOWED_HOSTS": " Labelnext.Example.org, a.b "}
    assert Settings.from_env(named).allowed_hosts == ("labelnext.example.org", "a.b")
    for wrong in ("https://labelnext.example.org", "labelnext.example.org:9090", "*.example.org"):
        with pytest.raises(ConfigError, match="LABELNEXT_ALLOWED_HOSTS must be host names such as"):
            Settings.from_env({"LABELNEXT_ALLOWED_HOSTS": wrong})
