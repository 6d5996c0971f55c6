import dataclasses
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime

import minisign as library
import pytest

from contract.errors import ConfigError, RepositoryError, SignatureError
from contract.versions.repository import Repository
from contract.versions.signatures import Keys, SigningKey, generate_keys, read_public_key
from contract.versions.version import MANIFEST_FILE, SIGNATURE_FILE
from tests.versions import VERSION, manifest, publish, write_files

OTHER_VERSION = "20260102T030405678Z-0a1b2d"


@pytest.fixture(scope="module")
def key_files(tmp_path_factory):
    """The paths of a secret key and its public key."""
    return generate_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def other_keys(tmp_path_factory):
    """The keys of somebody else."""
    return read_keys(generate_keys(tmp_path_factory.mktemp("others")))


def read_keys(key_files):
    return Keys.read(signing=key_files[0], verifying=read_public_key(str(key_files[1])))


@pytest.fixture(scope="module")
def keys(key_files):
    """Keys that sign and verify."""
    return read_keys(key_files)


def minisign(*arguments, cwd):
    return subprocess.run(["minisign", *map(str, arguments)], cwd=cwd, check=False, capture_output=True, text=True)


def test_rejects_a_signature_with_a_changed_byte(keys):
    """In any line but the untrusted comment, which is not signed."""
    good = keys.signing.sign(b"manifest", version=VERSION)
    for place in range(good.index(b"\n") + 1, len(good) - 1, 3):
        signature = bytearray(good)
        signature[place] ^= 1
        with pytest.raises(SignatureError, match=VERSION):
            keys.verifying.verify(b"manifest", bytes(signature), version=VERSION)


@pytest.mark.parametrize(
    ("manifest", "version", "key", "message"),
    [
        (b"manifest ", VERSION, "keys", "was edited, or signed by somebody else"),
        (b"manifest", VERSION, "other_keys", "signed by somebody else"),
        (b"manifest", OTHER_VERSION, "keys", rf"says 'labelnext version {VERSION}', .*{OTHER_VERSION}"),
    ],
    ids=["another manifest", "another key", "another version"],
)
def test_rejects_signatures_of_something_else(request, keys, manifest, version, key, message):
    signature = keys.signing.sign(b"manifest", version=VERSION)
    with pytest.raises(SignatureError, match=message):
        request.getfixturevalue(key).verifying.verify(manifest, signature, version=version)


@pytest.mark.skipif(shutil.which("minisign") is None, reason="the program minisign is not installed")
@pytest.mark.parametrize("made_by", ["minisign", "keygen"])
def test_compatible_with_minisign(key_files, tmp_path, made_by):
    """Keys and signatures work both ways; legacy signatures are rejected."""
    if made_by == "minisign":
        key_files = tmp_path / "its.key", tmp_path / "its.pub"
        minisign("-G", "-W", "-p", key_files[1], "-s", key_files[0], cwd=tmp_path)
    keys, comment = read_keys(key_files), f"labelnext version {VERSION}"
    manifest, signature = tmp_path / MANIFEST_FILE, tmp_path / SIGNATURE_FILE
    manifest.write_bytes(b"manifest")
    signature.write_bytes(keys.signing.sign(b"manifest", version=VERSION))
    done = minisign("-V", "-H", "-p", key_files[1], "-m", MANIFEST_FILE, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Trusted comment: {comment}\n" in done.stdout
    minisign("-S", "-s", key_files[0], "-t", comment, "-m", MANIFEST_FILE, cwd=tmp_path)
    keys.verifying.verify(b"manifest", signature.read_bytes(), version=VERSION)
    minisign("-S", "-l", "-s", key_files[0], "-t", comment, "-m", MANIFEST_FILE, cwd=tmp_path)
    with pytest.raises(SignatureError, match="legacy"):
        keys.verifying.verify(b"manifest", signature.read_bytes(), version=VERSION)


def test_generated_keys_are_private_and_not_overwritten(key_files):
    """Only the public key is readable by others, for any umask. A lost secret key could not be replaced."""
    assert [stat.S_IMODE(path.stat().st_mode) for path in key_files] == [0o600, 0o644]
    before = key_files[0].read_bytes()
    with pytest.raises(ConfigError, match="File exists"):
        generate_keys(key_files[0].parent)
    assert key_files[0].read_bytes() == before


def test_public_key_is_a_line_or_a_file(key_files):
    """A secret key by mistake is rejected, and not shown."""
    line = key_files[1].read_text().splitlines()[1]
    assert read_public_key(line) == read_public_key(str(key_files[1])) == line
    with pytest.raises(ValueError, match="a minisign public key") as caught:
        read_public_key(str(key_files[0]))
    assert key_files[0].read_text().splitlines()[1] not in str(caught.value)


@pytest.mark.parametrize("value", ["", "key", "RWabc", "/nowhere/key.pub", "\0", "a" * 5000, "RW" + "A" * 54 + "="])
def test_rejects_invalid_public_keys(value):
    with pytest.raises(ValueError, match=r"a minisign public key .* or the path"):
        read_public_key(value)


@pytest.mark.parametrize("content", [b"", b"untrusted comment: x\nRW\n", b"\xff\n\xff\n"])
def test_rejects_invalid_secret_keys(tmp_path, content):
    path = tmp_path / "its.key"
    with pytest.raises(ConfigError, match="keygen"):
        SigningKey(path)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="LABELNEXT_SIGNING_KEY must be the path of a minisign secret key"):
        SigningKey(path)


def test_rejects_secret_keys_with_a_password(key_files, tmp_path):
    """The message says how to remove it."""
    secret = library.SecretKey.from_file(key_files[0])
    secret.encrypt("password", opslimit=32768, memlimit=2**24)
    (tmp_path / "its.key").write_bytes(bytes(secret))
    with pytest.raises(ConfigError, match="minisign -C -W"):
        SigningKey(tmp_path / "its.key")


def test_keys_must_be_one_pair(key_files, keys, other_keys):
    """The public key is derived from the secret one; with another one readers would refuse every version."""
    signing = Keys.read(signing=key_files[0])
    assert signing.verifying.line == signing.signing.public.line
    for accepted in (keys, Keys()):
        accepted.check_publishing()
    with pytest.raises(ConfigError, match="LABELNEXT_SIGNING_KEY is not"):
        dataclasses.replace(keys, signing=None).check_publishing()
    with pytest.raises(ConfigError, match="set both keys of one pair"):
        Keys.read(signing=key_files[0], verifying=other_keys.verifying.line)


@pytest.fixture
def repository(tmp_path, keys):
    """A repository that signs and verifies."""
    return Repository(tmp_path / "models", keys=keys)


def test_opens_a_signed_version(repository):
    """Readers without a key open it, too. The signature is not in the manifest."""
    version = publish(repository, b"content")
    assert (version.path / SIGNATURE_FILE).is_file()
    assert SIGNATURE_FILE not in version.manifest.files
    assert repository.open(version.name) == version
    assert repository.rollback(version.name) == version
    Repository(repository.root).open(version.name).verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / MANIFEST_FILE).write_text("[" * 100_000), "the version was edited"),
        (lambda path: (path / SIGNATURE_FILE).write_bytes(b"x" * 20_000), "no readable signature"),
        (lambda path: (path / SIGNATURE_FILE).unlink(), "no readable signature"),
        (lambda path: path.rename(path.with_name(OTHER_VERSION)), "made for something else"),
    ],
    ids=["edited", "long", "removed", "renamed"],
)
def test_rejects_versions_without_a_valid_signature(repository, change, message):
    """Anyone who can write to the folder can write a version, but not sign it."""
    change(publish(repository, b"content").path)
    [name] = repository.versions()
    for method in (repository.open, repository.rollback):
        with pytest.raises(SignatureError, match=message):
            method(name)


def test_opens_the_files_that_were_verified(repository):
    """A file that is replaced after the comparison is not read."""
    version = publish(repository, b"content")
    with repository.open_verified(version.name) as opened:
        (version.path / "model.onnx").write_bytes(b"another")
        assert opened.model_path.read_bytes() == b"content"
        assert opened.name == version.name
        private = opened.path
    assert not private.exists()


def test_signs_the_files_that_were_written(repository):
    """Versions are written outside the repository, where nobody else can add files."""
    with repository.stage(datetime.now(UTC)) as staged:
        write_files(staged.path, b"content")
        assert not staged.path.is_relative_to(repository.root)
        version = staged.publish(manifest(staged.version))
    assert not staged.path.exists()
    assert (version.path / "model.onnx").read_bytes() == b"content"
    version.verify()


def test_failed_private_copy_is_an_error(repository, monkeypatch, tmp_path):
    version = publish(repository, b"content")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with (
        pytest.raises(RepositoryError, match=r"cannot be copied .* set TMPDIR"),
        repository.open_verified(version.name),
    ):
        pass


def test_missing_library_is_named(monkeypatch, key_files):
    monkeypatch.setitem(sys.modules, "minisign", None)
    assert Keys.read() == Keys()
    with pytest.raises(ConfigError, match=r"pip install -r requirements/signatures\.txt"):
        Keys.read(signing=key_files[0])
