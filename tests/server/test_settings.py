from dataclasses import fields
from pathlib import Path

import pytest

from contract.errors import ConfigError
from server.settings import Device, MaskPolicy, Precision, Score, Settings

SET = {
    "LABELNEXT_MODELS": "/srv/models",
    "LABELNEXT_MODEL": "birds",
    "LABELNEXT_MIRROR": "/srv/mirror",
    "LABELNEXT_VERIFY_KEY": "RWT/9m+og4isUpyk8iGW2RjY53oZpnrl1ErOe3Pq4B/4AJZTCk4Wz5TX",
    "LABELNEXT_LABEL_STUDIO_URL": "https://studio.example.org/",
    "LABELNEXT_LABEL_STUDIO_PUBLIC_URL": "https://studio.example.org/labels/",
    "LABELNEXT_LABEL_STUDIO_TOKEN": "s3cret",
    "LABELNEXT_LOCAL_FILES_ROOT": "/srv/images",
    "LABELNEXT_ALLOWED_ORIGINS": "http://minio:9000, https://cdn.example.org",
    "LABELNEXT_MAX_MEGAPIXELS": "20",
    "LABELNEXT_BASIC_AUTH": "studio:s3cret",
    "LABELNEXT_WEBHOOK_SECRET": "s3cret-of-events",
    "LABELNEXT_BIND": "0.0.0.0:80",
    "LABELNEXT_ALLOWED_HOSTS": " Labelnext.Example.org, a.b ",
    "LABELNEXT_THREADS": "4",
    "LABELNEXT_QUEUE_REQUESTS": "9",
    "LABELNEXT_FETCH_THREADS": "3",
    "LABELNEXT_QUEUE_IMAGES": "50",
    "LABELNEXT_PASSES": "50",
    "LABELNEXT_SCORE": "bald",
    "LABELNEXT_MASKS": "FRESH",
    "LABELNEXT_PROVIDER": "cuda",
    "LABELNEXT_PRECISION": "int8",
    "LABELNEXT_POLL_S": "0.5",
    "LABELNEXT_MAX_BATCH_IMAGES": "64",
    "LABELNEXT_DEADLINE_S": "30",
    "LABELNEXT_MAX_BODY_BYTES": "1000",
    "LABELNEXT_CACHE_DIR": "/srv/features",
    "LABELNEXT_CACHE_MB": "100",
}
READ = Settings(
    models=Path("/srv/models"),
    model="birds",
    mirror=Path("/srv/mirror"),
    verify_key="RWT/9m+og4isUpyk8iGW2RjY53oZpnrl1ErOe3Pq4B/4AJZTCk4Wz5TX",
    label_studio_url="https://studio.example.org",
    label_studio_public_url="https://studio.example.org/labels",
    label_studio_token="s3cret",
    local_files_root=Path("/srv/images"),
    allowed_origins=("http://minio:9000", "https://cdn.example.org"),
    max_megapixels=20,
    basic_auth="studio:s3cret",
    webhook_secret="s3cret-of-events",
    bind="0.0.0.0:80",
    allowed_hosts=("labelnext.example.org", "a.b"),
    threads=4,
    queue_requests=9,
    fetch_threads=3,
    queue_images=50,
    passes=50,
    score=Score.BALD,
    masks=MaskPolicy.FRESH,
    provider=Device.CUDA,
    precision=Precision.INT8,
    poll_s=0.5,
    max_batch_images=64,
    deadline_s=30.0,
    max_body_bytes=1000,
    cache_dir=Path("/srv/features"),
    cache_mb=100,
)


def test_every_setting_is_read_from_its_variable():
    """Each by LABELNEXT_ and its name; none is left out."""
    assert Settings.read(SET) == READ
    assert list(SET) == [f"LABELNEXT_{item.name.upper()}" for item in fields(Settings)]


def test_by_default_two_batches_and_every_thread_are_under_way():
    """One batch runs, one waits, and no thread is idle."""
    assert Settings(max_batch_images=8, fetch_threads=4).images_under_way == 20
    assert Settings(max_batch_images=8, fetch_threads=4, queue_images=3).images_under_way == 3


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("BIND", "9090", "HOST:PORT"),
        ("BIND", "localhost:", "HOST:PORT"),
        ("BIND", ":9090", "HOST:PORT"),
        ("BIND", "localhost:70000", "HOST:PORT"),
        ("ALLOWED_HOSTS", "https://labelnext.example.org", "host names"),
        ("ALLOWED_HOSTS", "labelnext.example.org:9090", "host names"),
        ("ALLOWED_HOSTS", "*.example.org", "host names"),
        ("THREADS", "0", "greater than or equal to 1"),
        ("PASSES", "-1", "greater than or equal to 1"),
        ("PASSES", "2.5", "a whole number"),
        ("SCORE", "entropy", "'agreement' or 'bald'"),
        ("PRECISION", "fp8", "'auto', 'fp32', 'fp16' or 'int8'"),
        ("CACHE_MB", "-1", "greater than or equal to 0"),
        ("CACHE_MB", "all", "a whole number"),
        ("POLL_S", "soon", "a number"),
        ("POLL_S", "nan", "a finite number|less than 1000000"),
        ("DEADLINE_S", "inf", "a finite number|less than 1000000"),
        ("DEADLINE_S", "0", "greater than 0"),
        ("LABEL_STUDIO_URL", "studio.example.org", "an http or https URL"),
        ("LABEL_STUDIO_URL", "ftp://studio.example.org", "an http or https URL"),
        ("LABEL_STUDIO_PUBLIC_URL", "studio.example.org", "an http or https URL"),
        ("ALLOWED_ORIGINS", "http://good.example.org,bad", "an http or https URL"),
    ],
)
def test_nonsense_is_refused(name, text, expected):
    """A value that cannot work is refused at the start, not when it is first used; it is said what can."""
    with pytest.raises(ConfigError, match=f"^LABELNEXT_{name} must be ({expected})"):
        Settings.read({f"LABELNEXT_{name}": text})


@pytest.mark.parametrize(
    ("text", "in_memory", "in_a_folder"), [("", 64, 4096), ("7", 7, 7), ("0", 0, 0)], ids=["unset", "set", "off"]
)
def test_the_caches_bound_follows_the_place(text, in_memory, in_a_folder):
    """Disks are larger than memory, unless a number is set; 0 turns the cache off in either place."""
    for folder, mebibytes in (("", in_memory), ("/srv/features", in_a_folder)):
        read = Settings.read({"LABELNEXT_CACHE_DIR": folder, "LABELNEXT_CACHE_MB": text})
        assert read.cache_bytes == mebibytes * 2**20
