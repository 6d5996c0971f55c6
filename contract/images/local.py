"""Images that no host is asked for: those in data URIs, and files of Label Studio's local storage."""

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
from contract.images.download import LONGEST_REFERENCE, Validators, public_name, too_large
from contract.images.urls import AROUND, BREAKS

_MAX_ESCAPES: Final = 1_000_000
"""In a data URI: a third of a second and 200 MB. Base64 of 20 MiB has 900,000 where even + and / are escaped."""
_SETTLED_NS: Final = 2 * 10**9
"""A file that is younger may change again without another time: some file systems count two seconds at once."""
_SPACES: Final = b"\t\n\f\r "


def decode_data_uri(reference: str, *, max_bytes: int) -> bytes:
    """Return the bytes in a data URI, as browsers read it; FetchError if there are none, or too many."""
    if len(reference) > 3 * max_bytes + LONGEST_REFERENCE:  # %00, the longest spelling, takes three characters a byte
        raise too_large("data:...", max_bytes)
    head, _, payload = reference.rstrip(AROUND).partition(",")
    payload = payload.partition("#")[0]
    if payload.count("%") > _MAX_ESCAPES:
        raise FetchError(
            f"data:... has more than {_MAX_ESCAPES} characters escaped by %, each of which takes its time; use base64"
        )
    data = unquote_to_bytes(payload.translate(BREAKS).encode(errors="replace"))  # JSON may hold half a character
    if re.search("(?i); *base64 *$", head):
        data = _decode_base64(data)
    if not data:
        raise FetchError("data:... holds no data; expected data:image/png;base64, and then the image's bytes")
    if len(data) > max_bytes:
        raise too_large("data:...", max_bytes)
    return data


def _decode_base64(data: bytes) -> bytes:
    """Base64 with spaces anywhere, and padded or not."""
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
    """Return a regular file below the root, None if the validators known are its own; and its validators.

    Links are followed before the check, so that none leads out of the root.
    """
    shown = f"the local file {public_name(name)!r}"
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root.resolve()):
            raise OSError(errno.EACCES, "it is not below the root")
        now = _validators(path)  # before it is read: what changes meanwhile is another file next time
        return (None if now.can_ask and now == known else read_regular(path, most_bytes=max_bytes)), now
    except (OSError, ValueError, RuntimeError) as err:  # a NUL in the name is a ValueError, a loop of links the last
        if isinstance(err, OSError) and err.errno == errno.EFBIG:
            raise too_large(shown, max_bytes) from err
        raise FetchError(
            f"{shown} cannot be read ({getattr(err, 'strerror', None) or type(err).__name__}); check its name and "
            "permissions, and that LABELNEXT_LOCAL_FILES_ROOT is the folder that Label Studio serves them from"
        ) from err


def _validators(path: Path) -> Validators:
    """Size, times and number of a file: writing to it, or putting another in its place, changes the second time."""
    status = os.stat(path)
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) <= _SETTLED_NS:
        return Validators("", None, None)
    numbers = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return Validators(str(path), '"' + "-".join(f"{number:x}" for number in numbers) + '"', None)
