from dataclasses import asdict
from pathlib import Path

import pytest

from contract.errors import ConfigError
from server.settings import Device, Precision, Score, Settings

KEY = "RWT/9m+og4isUpyk8iGW2RjY53oZpnrl1ErOe3Pq4B/4AJZTCk4Wz5TX"
VALUES = {
    "models": ("/srv/models", Path("/srv/models")),
    "model": ("birds", "birds"),
    "version_cache": ("/srv/versions", Path("/srv/versions")),
    "verify_key": (KEY, KEY),
    "label_studio_url": ("https://studio.example.org/", "https://studio.example.org"),
    "label_studio_public_url": ("https://studio.example.org/labels/", "https://studio.example.org/labels"),
    "label_studio_token": ("s3cret", "s3cret"),
    "local_files_root": ("/srv/images", Path("/srv/images")),
    "allowed_origins": ("http://minio:9000, https://cdn.example.org", ("http://minio:9000", "https://cdn.example.org")),
    "max_megapixels": ("20", 20),
    "basic_auth": ("studio:s3cret", "studio:s3cret"),
    "webhook_secret": ("s3cret-of-events", "s3cret-of-events"),
    "bind": ("0.0.0.0:80", "0.0.0.0:80"),
    "allowed_hosts": (" Labelnext.Example.org, a.b ", ("labelnext.example.org", "a.b")),
    "threads": ("4", 4),
    "queue_requests": ("9", 9),
    "fetch_threads": ("3", 3),
    "queue_images": ("50", 50),
    "passes": ("50", 50),
    "score": ("bald", Score.BALD),
    "provider": ("cuda", Device.CUDA),
    "precision": ("int8", Precision.INT8),
    "poll_s": ("0.5", 0.5),
    "max_batch_images": ("64", 64),
    "deadline_s": ("30", 30.0),
    "max_body_bytes": ("1000", 1000),
    "cache_dir": ("/srv/features", Path("/srv/features")),
    "recheck_s": ("0", 0.0),
    "cache_mb": ("100", 100),
}
"""By field, the text of its variable and the parsed value."""


def test_every_setting_is_read_from_its_variable():
    settings = Settings.read({f"LABELNEXT_{name.upper()}": text for name, (text, _) in VALUES.items()})
    assert asdict(settings) == {name: value for name, (_, value) in VALUES.items()}


@pytest.mark.parametrize(
    ("name", "texts", "expected"),
    [
        ("BIND", ("9090", "localhost:", ":9090", "localhost:70000"), "HOST:PORT"),
        ("ALLOWED_HOSTS", ("https://a.example.org", "a.example.org:9090", "*.example.org"), "host names"),
        ("THREADS", ("0",), "greater than or equal to 1"),
        ("PASSES", ("2.5",), "a whole number"),
        ("SCORE", ("entropy",), "'agreement' or 'bald'"),
        ("CACHE_MB", ("-1",), "greater than or equal to 0"),
        ("POLL_S", ("nan", "inf"), "a finite number|less than 1000000"),
        ("DEADLINE_S", ("0",), "greater than 0"),
        ("LABEL_STUDIO_URL", ("studio.example.org", "ftp://studio.example.org"), "an http or https URL"),
        ("LABEL_STUDIO_PUBLIC_URL", ("studio.example.org",), "an http or https URL"),
        ("ALLOWED_ORIGINS", ("http://good.example.org,bad",), "an http or https URL"),
    ],
)
def test_invalid_values_are_refused(name, texts, expected):
    for text in texts:
        with pytest.raises(ConfigError, match=f"^LABELNEXT_{name} must be ({expected})"):
            Settings.read({f"LABELNEXT_{name}": text})


def test_limits_have_defaults_that_depend_on_other_settings():
    """The cache is larger on disk than in memory; the limit on images is two batches and one per thread."""
    for text, in_memory, in_a_folder in (("", 256, 4096), ("7", 7, 7), ("0", 0, 0)):
        for folder, mebibytes in (("", in_memory), ("/srv/features", in_a_folder)):
            settings = Settings.read({"LABELNEXT_CACHE_DIR": folder, "LABELNEXT_CACHE_MB": text})
            assert settings.cache_bytes == mebibytes * 2**20
    assert Settings(max_batch_images=8, fetch_threads=4).max_images_in_flight == 20
    assert Settings(max_batch_images=8, fetch_threads=4, queue_images=3).max_images_in_flight == 3
