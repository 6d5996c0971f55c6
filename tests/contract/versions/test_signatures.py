"""Signing and verifying, against the minisign program where it is installed; and a repository with keys."""

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
from contract.versions.signatures import Keys, SigningKey, VerifyKey, generate_keys, read_public_key
from contract.versions.version import MANIFEST_FILE, SIGNATURE_FILE
from tests.versions import manifest, publish, write_files

VERSION = "20260102T030405678Z-0a1b2c"
OTHER_VERSION = "20260102T030405678Z-0a1b2d"

program = pytest.mark.skipif(shutil.which("minisign") is None, reason="the program minisign is not installed")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The paths of a secret key and of its public one."""
    return generate_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The keys of somebody else."""
    return read_keys(generate_keys(tmp_path_factory.mktemp("others")))


def read_keys(pair):
    return Keys.read(signing=pair[0], verifying=read_public_key(str(pair[1])))


@pytest.fixture(scope="module")
def keys(pair):
    """Both of one pair."""
    return read_keys(pair)


def minisign(*arguments, cwd):
    return subprocess.run(["minisign", *map(str, arguments)], cwd=cwd, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("place", range(0, 330, 3))
def test_a_signature_with_another_byte_is_refused(keys, place):
    """In whichever of its lines; only the untrusted comment, which is none of its content, may change."""
    signature = bytearray(keys.signing.sign(b"manifest", version=VERSION))
    first_line = signature.index(b"\n")
    place = first_line + 1 + place % (len(signature) - first_line - 2)
    signature[place] ^= 1
    with pytest.raises(SignatureError, match=VERSION):
        keys.verifying.verify(b"manifest", bytes(signature), version=VERSION)


@pytest.mark.parametrize(
    ("manifest", "version", "key", "message"),
    [
        (b"manifest ", VERSION, "keys", "was edited, or signed by somebody else"),
        (b"manifest", VERSION, "others", "signed by somebody else"),
        (b"manifest", OTHER_VERSION, "keys", rf"says 'labelnext version {VERSION}', .*{OTHER_VERSION}"),
    ],
    ids=["another manifest", "another key", "another version"],
)
def test_a_good_signature_of_something_else_is_refused(request, keys, manifest, version, key, message):
    """It is one of all bytes, by one key; and what it was signed as is part of what is signed."""
    signature = keys.signing.sign(b"manifest", version=VERSION)
    with pytest.raises(SignatureError, match=message):
        request.getfixturevalue(key).verifying.verify(manifest, signature, version=version)


@program
def test_minisign_verifies_what_is_signed(pair, keys, tmp_path):
    """And shows the version; of another manifest it says that the signature is wrong."""
    (tmp_path / MANIFEST_FILE).write_bytes(b"manifest")
    (tmp_path / SIGNATURE_FILE).write_bytes(keys.signing.sign(b"manifest", version=VERSION))
    done = minisign("-V", "-H", "-p", pair[1], "-m", MANIFEST_FILE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Trusted comment: labelnext version {VERSION}\n" in done.stdout
    assert minisign("-V", "-P", keys.verifying.line, "-m", MANIFEST_FILE, cwd=tmp_path).returncode == 0
    (tmp_path / MANIFEST_FILE).write_bytes(b"manifesto")
    assert minisign("-V", "-p", pair[1], "-m", MANIFEST_FILE, cwd=tmp_path).returncode != 0


@program
def test_what_minisign_signs_is_verified(pair, keys, tmp_path):
    """So that a version which is not signed yet can be signed with the program alone."""
    (tmp_path / MANIFEST_FILE).write_bytes(b"manifest")
    comment = f"labelnext version {VERSION}"
    done = minisign("-S", "-s", pair[0], "-t", comment, "-m", MANIFEST_FILE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    signature = (tmp_path / SIGNATURE_FILE).read_bytes()
    keys.verifying.verify(b"manifest", signature, version=VERSION)
    with pytest.raises(SignatureError):
        keys.verifying.verify(b"manifesto", signature, version=VERSION)


@program
def test_minisigns_legacy_signatures_are_refused(pair, keys, tmp_path):
    """What signs the content itself has another meaning than what signs its digest."""
    (tmp_path / MANIFEST_FILE).write_bytes(b"manifest")
    minisign("-S", "-l", "-s", pair[0], "-t", f"labelnext version {VERSION}", "-m", MANIFEST_FILE, cwd=tmp_path)
    with pytest.raises(SignatureError, match="legacy"):
        keys.verifying.verify(b"manifest", (tmp_path / SIGNATURE_FILE).read_bytes(), version=VERSION)


@program
def test_keys_that_minisign_makes_are_taken(tmp_path):
    """The files that `minisign -G -W` writes do as well as those of keygen."""
    done = minisign("-G", "-W", "-p", "its.pub", "-s", "its.key", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    keys = read_keys((tmp_path / "its.key", tmp_path / "its.pub"))
    keys.verifying.verify(b"manifest", keys.signing.sign(b"manifest", version=VERSION), version=VERSION)


def test_the_secret_key_is_its_owners_alone(pair):
    """Whatever the umask; the public one may be read by all."""
    assert [stat.S_IMODE(path.stat().st_mode) for path in pair] == [0o600, 0o644]


def test_keys_are_not_overwritten(pair):
    """All that was signed with the key that is there would be lost."""
    before = pair[0].read_bytes()
    with pytest.raises(ConfigError, match="File exists"):
        generate_keys(pair[0].parent)
    assert pair[0].read_bytes() == before


def test_a_public_key_is_its_line_or_its_file(pair):
    """Both are what people have at hand; a secret key by mistake is none, and is not shown."""
    line = pair[1].read_text().splitlines()[1]
    assert read_public_key(line) == read_public_key(str(pair[1])) == line
    with pytest.raises(ValueError, match="a minisign public key") as caught:
        read_public_key(str(pair[0]))
    assert pair[0].read_text().splitlines()[1] not in str(caught.value)


@pytest.mark.parametrize("value", ["", "key", "RWabc", "/nowhere/key.pub", "\0", "a" * 5000, "RW" + "A" * 54 + "="])
def test_what_is_no_public_key_is_refused(value):
    """With a message for the settings to show."""
    with pytest.raises(ValueError, match=r"a minisign public key .* or the path"):
        read_public_key(value)


def test_a_key_of_44_bytes_that_is_no_point_of_the_curve_refuses_all(keys):
    """A public key is not checked before it is used, and then verifies nothing."""
    line = VerifyKey(keys.verifying.line).line
    zeros = "RW" + line[2:12] + "A" * 44
    with pytest.raises((SignatureError, ConfigError)):
        VerifyKey(zeros).verify(b"manifest", keys.signing.sign(b"manifest", version=VERSION), version=VERSION)


@pytest.mark.parametrize("content", [b"", b"untrusted comment: x\nRW\n", b"\xff\n\xff\n"])
def test_what_is_no_secret_key_is_refused(tmp_path, content):
    """And so is a path where there is none."""
    path = tmp_path / "its.key"
    with pytest.raises(ConfigError, match="keygen"):
        SigningKey(path)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="LABELNEXT_SIGNING_KEY must be the path of a minisign secret key"):
        SigningKey(path)


def test_a_secret_key_with_a_password_is_refused(pair, tmp_path):
    """With how to remove it: nobody is there to type it."""
    secret = library.SecretKey.from_file(pair[0])
    secret.encrypt("password", opslimit=32768, memlimit=2**24)
    (tmp_path / "its.key").write_bytes(bytes(secret))
    with pytest.raises(ConfigError, match="minisign -C -W"):
        SigningKey(tmp_path / "its.key")


def test_keys_of_two_pairs_are_refused(pair, others):
    """What the trainer publishes would be refused by all, the trainer included."""
    with pytest.raises(ConfigError, match="set both of one pair"):
        Keys.read(signing=pair[0], verifying=others.verifying.line)


def test_who_signs_also_verifies(pair):
    """With nothing but a secret key set, the trainer still opens no version of somebody else."""
    keys = Keys.read(signing=pair[0])
    assert keys.verifying.line == keys.signing.public.line


def test_who_only_verifies_cannot_publish(keys):
    """Said before a network is trained."""
    keys.check_publishing()
    Keys().check_publishing()
    with pytest.raises(ConfigError, match="LABELNEXT_SIGNING_KEY is not"):
        dataclasses.replace(keys, signing=None).check_publishing()


@pytest.fixture
def repository(tmp_path, keys):
    """A repository that signs and verifies."""
    return Repository(tmp_path / "models", keys=keys)


def test_a_signed_version_is_opened(repository):
    """Its signature is no file of its manifest, and lies beside it; without a key it is readable, too."""
    version = publish(repository, b"content")
    assert (version.path / SIGNATURE_FILE).is_file()
    assert SIGNATURE_FILE not in version.manifest.files
    assert repository.open(version.name) == version
    assert repository.rollback(version.name) == version
    Repository(repository.root).open(version.name).verify()


def edit_manifest(version):
    """No parser sees what is not signed."""
    (version.path / MANIFEST_FILE).write_text("[" * 100_000)


def lengthen_signature(version):
    (version.path / SIGNATURE_FILE).write_bytes(b"x" * 20_000)


def remove_signature(version):
    """Whoever can write to the folder can write a version, and not its signature."""
    (version.path / SIGNATURE_FILE).unlink()


def copy_elsewhere(version):
    """A good version of another day, put where a new one is looked for."""
    shutil.copytree(version.path, version.path.with_name(OTHER_VERSION))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edit_manifest, "the version was edited"),
        (lengthen_signature, "no signature that can be read"),
        (remove_signature, "no signature that can be read"),
        (copy_elsewhere, "made for something else"),
    ],
)
def test_a_version_without_a_good_signature_is_refused(repository, spoil, message):
    """Neither opened nor gone back to."""
    version = publish(repository, b"content")
    spoil(version)
    name = OTHER_VERSION if spoil is copy_elsewhere else version.name
    for use in (repository.open, repository.rollback):
        with pytest.raises(SignatureError, match=message):
            use(name)


def test_what_is_verified_is_what_is_opened(repository):
    """A file that is replaced after the comparison is not the one that is read."""
    version = publish(repository, b"content")
    with repository.open_verified(version.name) as opened:
        (version.path / "model.onnx").write_bytes(b"another")
        assert opened.model_path.read_bytes() == b"content"
        assert opened.name == version.name
        private = opened.path
    assert not private.exists()


def test_what_is_signed_is_what_was_written(repository):
    """Whoever can write to the repository cannot have the trainer sign what they put there: it is written elsewhere."""
    with repository.stage(datetime.now(UTC)) as staged:
        write_files(staged.path, b"content")
        assert not staged.path.is_relative_to(repository.root)
        version = staged.publish(manifest(staged.version))
    assert not staged.path.exists()
    assert (version.path / "model.onnx").read_bytes() == b"content"
    version.verify()


def test_no_room_for_the_private_copy_is_said(repository, monkeypatch, tmp_path):
    """With the variable that moves it."""
    version = publish(repository, b"content")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with (
        pytest.raises(RepositoryError, match=r"cannot be copied .* set TMPDIR"),
        repository.open_verified(version.name),
    ):
        pass


def test_the_library_that_is_missing_is_named(monkeypatch, pair):
    """Only where a key is set is it needed."""
    monkeypatch.setitem(sys.modules, "minisign", None)
    assert Keys.read() == Keys()
    with pytest.raises(ConfigError, match=r"pip install -r requirements/signatures\.txt"):
        Keys.read(signing=pair[0])
