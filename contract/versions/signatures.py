"""Signatures of versions: minisign's, over manifest.json, which has the digests of all other files.

The trusted comment names the version, so that a signature is valid for one version only. Files and keys have minisign's
format (https://jedisct1.github.io/minisign/), and its program can make and verify them. The library is needed only if a
key is set. Functions that take keys raise ConfigError if a key is invalid or the library is missing.
"""

import binascii
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from contract.errors import ConfigError, SignatureError

SIGNATURE_SUFFIX: Final = ".minisig"
MAX_SIGNATURE_BYTES: Final = 10_000
"""Size of a signature file; minisign's comments are limited to 8,192 bytes."""

_PUBLIC_KEY_BYTES = 42
_REMEDY = "roll back to a version that is signed, or publish again with LABELNEXT_SIGNING_KEY"


class VerifyKey:
    """A minisign public key."""

    def __init__(self, line: str) -> None:
        """Read the key from the line of base64 that `minisign -G` prints."""
        minisign = _library()
        try:
            self._key: Any = minisign.PublicKey.from_base64(line)
        except minisign.Error as err:
            raise ConfigError(f"LABELNEXT_VERIFY_KEY must be a minisign public key ({err}), got {line[:60]!r}") from err
        self.line: Final = line

    def verify(self, manifest: bytes, signature: bytes, *, version: str) -> None:
        """Verify the signature of this version's manifest; SignatureError says what is wrong."""
        minisign = _library()
        try:
            parsed = minisign.Signature.from_bytes(signature)
            if not parsed.is_prehashed():
                raise SignatureError(f"the signature of version {version} is of minisign's legacy form; {_REMEDY}")
            self._key.verify(manifest, parsed)
        except minisign.Error as err:
            raise SignatureError(
                f"the signature of version {version} is not one of its manifest.json by the key {self.line} ({err}): "
                f"the version was edited, or signed by somebody else; {_REMEDY}"
            ) from err
        if parsed.trusted_comment != _comment(version):
            raise SignatureError(
                f"the signature of version {version} says {parsed.trusted_comment[:80]!r}, {_comment(version)!r} is "
                f"expected: it was made for something else; {_REMEDY}"
            )


class SigningKey:
    """A minisign secret key without a password."""

    def __init__(self, path: Path) -> None:
        """Read the key from its file.

        Raises:
            ConfigError: also if the key has a password.
        """
        minisign = _library()
        try:
            self._key: Any = minisign.SecretKey.from_file(path)
            encrypted = self._key.is_encrypted()
        except (OSError, minisign.Error) as err:
            raise ConfigError(
                f"LABELNEXT_SIGNING_KEY must be the path of a minisign secret key, {path} cannot be read as one "
                f"({err}); `python -m trainer keygen FOLDER` creates one"
            ) from err
        if encrypted:
            raise ConfigError(
                f"the secret key {path} has a password, which cannot be entered here; remove it with "
                f"`minisign -C -W -s {path}`, or create another with `python -m trainer keygen FOLDER`"
            )
        self.public: Final = VerifyKey(self._key.get_public_key().to_base64().decode())
        """The public key of its signatures."""

    def sign(self, manifest: bytes, *, version: str) -> bytes:
        """Return the signature of this version's manifest: the content of a .minisig file.

        Raises:
            SignatureError: if public and secret part of the key do not match, as in a file that was edited.
        """
        comment = _comment(version)
        signature = bytes(self._key.sign(manifest, trusted_comment=comment, untrusted_comment=comment)) + b"\n"
        self.public.verify(manifest, signature, version=version)  # fails if the secret key's file was edited
        return signature


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that sign and verify versions."""

    signing: SigningKey | None = None
    verifying: VerifyKey | None = None

    @classmethod
    def read(cls, *, signing: Path | None = None, verifying: str | None = None) -> "Keys":
        """Read a secret key's file, and a public key as returned by `read_public_key`.

        With a secret key, versions are verified too, by default with its public key: where the secret key is, no other
        publisher's version is opened.

        Raises:
            ConfigError: also if the two are not of one pair.
        """
        signer = SigningKey(signing) if signing else None
        key = VerifyKey(verifying) if verifying else signer.public if signer else None
        if signer and key and signer.public.line != key.line:
            raise ConfigError(
                f"LABELNEXT_SIGNING_KEY signs for the public key {signer.public.line}, LABELNEXT_VERIFY_KEY is "
                f"{key.line}: readers would refuse every version; set both keys of one pair"
            )
        return cls(signer, key)

    def check_publishing(self) -> None:
        """Raise ConfigError, before training, if published versions would be refused by every reader."""
        if self.verifying and not self.signing:
            raise ConfigError(
                "LABELNEXT_VERIFY_KEY is set, so that versions without a signature are refused, and "
                "LABELNEXT_SIGNING_KEY is not; set it to the secret key's path"
            )


def read_public_key(value: str) -> str:
    """Return a public key's line, given as that line or as a .pub file's path; ValueError says what is expected."""
    expected = "a minisign public key (56 characters that begin with RW) or the path of its .pub file"
    if _is_public_key(value):
        return value
    try:
        lines = Path(value).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError) as err:
        raise ValueError(expected) from err
    if len(lines) != 2 or not _is_public_key(lines[1]):
        raise ValueError(expected)
    return lines[1]


def generate_keys(folder: Path) -> tuple[Path, Path]:
    """Create a key pair in a folder that has none, and return the paths of secret and public key.

    Only the owner can read the secret key.

    Raises:
        ConfigError: if there is a key already, the folder cannot be written, or the library is missing.
    """
    pair = _library().KeyPair.generate()
    secret, public = folder / "labelnext.key", folder / "labelnext.pub"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_new(secret, bytes(pair.secret_key), mode=0o600)
        _write_new(public, bytes(pair.public_key), mode=0o644)
    except OSError as err:
        raise ConfigError(f"no key pair can be written to {folder} ({err}); choose another folder") from err
    return secret, public


def _comment(version: str) -> str:
    return f"labelnext version {version}"


def _is_public_key(text: str) -> bool:
    try:
        key = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return False
    return len(key) == _PUBLIC_KEY_BYTES and key.startswith(b"Ed")


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content + b"\n")


def _library() -> ModuleType:
    try:
        import minisign
    except ImportError as err:
        raise ConfigError(
            "signatures need a package that is not installed here; run `pip install -r requirements/signatures.txt`"
        ) from err
    return cast("ModuleType", minisign)
