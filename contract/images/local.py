"""Images in data URIs, and files of Label Studio's local storage."""

import base64
import binascii
import errno
import os
import re
import time
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from contract.errors import FetchError
from contract.files import read_regular
from contract.images.download import MAX_REFERENCE_LENGTH, Validators, public_name, too_large
from contract.images.urls import C0_CONTROL_OR_SPACE, TAB_OR_NEWLINE

_MAX_ESCAPES: Final = 1_000_000
"""Escapes in a data URI: a third of a second and 200 MB. Base64 of 20 MiB has 900,000 with + and / escaped."""
_SETTLED_NS: Final = 2 * 10**9
"""A younger file may change again without a new timestamp, since some file systems have a resolution of two seconds."""
_SPACES: Final = b"\t\n\f\r "


def decode_data_uri(reference: str, *, max_bytes: int) -> bytes:
    """Return the bytes of a data URI, as browsers read it; FetchError if there are none, or too many."""
    if len(reference) > 3 * max_bytes + MAX_REFERENCE_LENGTH:  # %00 takes three characters per byte
        raise too_large("data:...", max_bytes)
    head, _, payload = reference.rstrip(C0_CONTROL_OR_SPACE).partition(",")
    payload = payload.partition("#")[0]
    if payload.count("%") > _MAX_ESCAPES:
        raise FetchError(
            f"data:... has more than {_MAX_ESCAPES} characters escaped by %, which take too long to decode; use base64"
        )
    data = unquote_to_bytes(payload.translate(TAB_OR_NEWLINE).encode(errors="replace"))  # JSON allows lone surrogates
    if re.search("(?i); *base64 *$", head):
        data = _decode_base64(data)
    if not data:
        raise FetchError("data:... contains no data; expected data:image/png;base64, and then the image's bytes")
    if len(data) > max_bytes:
        raise too_large("data:...", max_bytes)
    return data


def _decode_base64(data: bytes) -> bytes:
    """Decode base64 with or without padding, and with spaces anywhere."""
    text = data.translate(None, _SPACES)
    if len(text) % 4 == 0:
        text = text[:-4] + text[-4:].removesuffix(b"=").removesuffix(b"=")
    try:
        if b"=" in text:
            raise binascii.Error("padding that does not fit")
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as err:
        raise FetchError("data:... is not valid base64; import the image again") from err


def read_local_file(
    root: Path, name: str, *, max_bytes: int, known: Validators | None = None
) -> tuple[bytes | None, Validators]:
    """Return the content of a file below the root, or None if it still has the known validators; and its validators.

    Links are resolved before the check, so that none leads out of the root.

    Raises:
        FetchError: if the file cannot be read, is not below the root, or has more than `max_bytes`.
    """
    shown = f"the local file {public_name(name)!r}"
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root.resolve()):
            raise OSError(errno.EACCES, "it is not below the root")
        now = _validators(path)  # before reading, so that a change meanwhile is noticed next time
        return (None if now.can_ask and now == known else read_regular(path, max_bytes=max_bytes)), now
    except (OSError, ValueError, RuntimeError) as err:  # ValueError: NUL in the name; RuntimeError: loop of links
        if isinstance(err, OSError) and err.errno == errno.EFBIG:
            raise too_large(shown, max_bytes) from err
        raise FetchError(
            f"{shown} cannot be read ({getattr(err, 'strerror', None) or type(err).__name__}); check its name and "
            "permissions, and that LABELNEXT_LOCAL_FILES_ROOT is the folder that Label Studio serves them from"
        ) from err


def _validators(path: Path) -> Validators:
    """Return validators from size, times and inode: writing or replacing a file changes the second time."""
    status = os.stat(path)
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) <= _SETTLED_NS:
        return Validators("", None, None)
    numbers = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return Validators(str(path), '"' + "-".join(f"{number:x}" for number in numbers) + '"', None)
