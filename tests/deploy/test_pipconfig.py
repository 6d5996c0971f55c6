import configparser
import os
import subprocess
import sys

import pytest

from deploy.images.pipconfig import MOUNTED_AT, pip_config, translate


def settings_of(config):
    parser = configparser.RawConfigParser()
    parser.read_string(config.text)
    return dict(parser["global"])


@pytest.mark.slow
def test_settings_become_a_file_that_pip_reads(tmp_path):
    """Pip says of the file what the listing said; nothing local is in it, and nothing is mounted for it."""
    listing = "global.index-url='https://example.org/simple'\nglobal.timeout='30'\ninstall.no-binary=':none:'\n"
    config = translate(listing)
    file = tmp_path / "pip.conf"
    file.write_text(config.text)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        env={**plain, "PIP_CONFIG_FILE": str(file)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "global.index-url='https://example.org/simple'" in told
    assert settings_of(config) == {"index-url": "https://example.org/simple", "timeout": "30", "no-binary": ":none:"}
    assert config.sources == {}
    assert config.portable == config.text


def test_variables_go_before_files():
    """As pip has it: a PIP_ variable replaces what a file says."""
    listing = ":env:.timeout='180'\nglobal.timeout='30'\nglobal.retries='2'\n"
    assert settings_of(translate(listing)) == {"timeout": "180", "retries": "2"}


def test_folders_of_this_machine_are_mounted(tmp_path):
    """Local folders and files are named by where they are mounted; an index with what lies beside its pages."""
    (tmp_path / "index/simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "ca.pem").touch()
    listing = (
        f"global.cert={str(tmp_path / 'ca.pem')!r}\n"
        f"global.find-links={str(tmp_path / 'wheels')!r}\n"
        f"global.extra-index-url='file://{tmp_path}/index/simple https://example.org/simple'\n"
        "global.timeout='30'\n"
    )
    config = translate(listing)
    assert config.sources == {"0": tmp_path / "ca.pem", "1": tmp_path / "wheels", "2": tmp_path / "index"}
    assert settings_of(config) == {
        "cert": f"{MOUNTED_AT}/0",
        "find-links": f"{MOUNTED_AT}/1",
        "extra-index-url": f"file://{MOUNTED_AT}/2/simple https://example.org/simple",
        "timeout": "30",
    }
    assert config.portable == "[global]\ntimeout = 30\n"


def test_a_folder_is_mounted_once(tmp_path):
    """Two settings that name the same folder share its mount."""
    config = translate(f":env:.find-links={str(tmp_path)!r}\nglobal.trusted={str(tmp_path)!r}\n")
    assert config.sources == {"0": tmp_path}
    assert set(settings_of(config).values()) == {f"{MOUNTED_AT}/0"}


def test_what_is_not_there_is_left_as_it_is():
    """A path that this machine does not have cannot be mounted."""
    config = translate("global.find-links='/nowhere/at/all'\n")
    assert settings_of(config) == {"find-links": "/nowhere/at/all"}
    assert config.sources == {}


@pytest.mark.slow
def test_this_machines_settings_can_be_read(monkeypatch):
    """They come from pip itself, its variables included."""
    monkeypatch.setenv("PIP_RETRIES", "7")
    assert settings_of(pip_config())["retries"] == "7"
