import configparser

import pytest

from deploy.images.pipconfig import MOUNTED_AT, pip_config, translate


def settings_of(config):
    parser = configparser.RawConfigParser()
    parser.read_string(config.text)
    return dict(parser["global"])


def test_settings_are_written_to_a_file():
    """Settings without local paths need no mounts."""
    config = translate(
        "global.index-url='https://example.org/simple'\nglobal.timeout='30'\ninstall.no-binary=':none:'\n"
    )
    assert settings_of(config) == {"index-url": "https://example.org/simple", "timeout": "30", "no-binary": ":none:"}
    assert config.sources == {}
    assert config.portable == config.text


def test_variables_override_files():
    """As in pip. A path that does not exist on this machine is kept."""
    listing = ":env:.timeout='180'\nglobal.timeout='30'\nglobal.find-links='/nowhere/at/all'\n"
    config = translate(listing)
    assert settings_of(config) == {"timeout": "180", "find-links": "/nowhere/at/all"}
    assert config.sources == {}


def test_local_paths_are_mounted(tmp_path):
    """Each once, and replaced by its mount point; a local index is mounted with its parent folder."""
    (tmp_path / "index/simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "ca.pem").touch()
    listing = (
        f"global.cert={str(tmp_path / 'ca.pem')!r}\n"
        f":env:.find-links={str(tmp_path / 'wheels')!r}\nglobal.trusted={str(tmp_path / 'wheels')!r}\n"
        f"global.extra-index-url='file://{tmp_path}/index/simple https://example.org/simple'\n"
        "global.timeout='30'\n"
    )
    config = translate(listing)
    assert config.sources == {"0": tmp_path / "ca.pem", "1": tmp_path / "wheels", "2": tmp_path / "index"}
    assert settings_of(config) == {
        "cert": f"{MOUNTED_AT}/0",
        "find-links": f"{MOUNTED_AT}/1",
        "trusted": f"{MOUNTED_AT}/1",
        "extra-index-url": f"file://{MOUNTED_AT}/2/simple https://example.org/simple",
        "timeout": "30",
    }
    assert config.portable == "[global]\ntimeout = 30\n"


@pytest.mark.slow
def test_this_machines_settings_can_be_read(monkeypatch):
    monkeypatch.setenv("PIP_RETRIES", "7")
    assert settings_of(pip_config())["retries"] == "7"
