"""Settings from environment variables: each is a field of a dataclass.

The field's name, after `LABELNEXT_`, is that of the variable; its type validates the value, and its docstring is the
description in docs/settings.md.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from contract.errors import ConfigError
from contract.images.download import HttpUrl
from contract.images.fetch import FetchSettings
from contract.images.preprocess import MAX_MEGAPIXELS
from contract.versions.location import parse_location
from contract.versions.signatures import read_public_key

PREFIX: Final = "LABELNEXT_"

DEFAULT_MODEL: Final = "default"

DECLARED: Final = ConfigDict(extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)
"""Configuration of all dataclasses of settings or options: their docstrings are shown to users."""

_REFUSED: Final = {
    "LABELNEXT_MIRROR": "is now called LABELNEXT_VERSION_CACHE",
    "LABELNEXT_MASKS": "is no longer supported, masks are always the version's own: unset it",
}
"""Variables that are no longer supported, with the reason."""
_EXPECTED: Final = {"int_parsing": "a whole number", "int_from_float": "a whole number", "float_parsing": "a number"}
"""Shorter versions of pydantic's messages, by error type."""


def parsed(parse: Callable[[str], object]) -> BeforeValidator:
    """Return a validator that parses a field's text; `parse` raises ValueError with what is expected."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def _parse_url(value: str) -> str:
    with suppress(ValueError):
        url = HttpUrl.parse(value).url
        if "@" not in urlsplit(url).netloc:
            return url.rstrip("/")
    raise ValueError("an http or https URL without a password, such as https://label-studio.example.org")


def split(value: str) -> tuple[str, ...]:
    """Return the non-empty items of a comma-separated list, stripped."""
    return tuple(item.strip() for item in value.split(",") if item.strip())


def _parse_basic_auth(value: str) -> str:
    user, _, password = value.partition(":")
    if not user or not password or not value.isascii() or not value.isprintable():
        raise ValueError("user:password in printable ASCII, neither of them empty")
    return value


def _parse_header_token(value: str) -> str:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("printable ASCII without spaces, since it is sent in a header")
    return value


Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, lt=1e6, allow_inf_nan=False)]
Url = Annotated[str, parsed(_parse_url)]
Urls = Annotated[tuple[Url, ...], parsed(split)]


@dataclass(frozen=True, slots=True, kw_only=True, config=DECLARED)
class SharedSettings:
    """Settings of both trainer and server."""

    models: Annotated[str | Path, parsed(parse_location)] = Path("models")
    """The model repository: a folder, or `s3://bucket/prefix` with the usual `AWS_*` variables and
    `requirements/s3.txt`."""
    version_cache: Path | None = None
    """The local cache of versions from a bucket: a folder, by default below `~/.cache`. It holds two versions, and
    three while one is downloaded."""
    verify_key: Annotated[str, parsed(read_public_key)] | None = None
    """A minisign public key, or the path of its `.pub` file: versions that its secret key has not signed are
    refused. Needs `requirements/signatures.txt`."""
    label_studio_url: Url | None = None
    """Label Studio's address as this program reaches it; uploads and cloud storage are read through it."""
    label_studio_public_url: Url | None = None
    """Label Studio's address as browsers reach it, path prefix included: references in tasks use it, and links on the
    server's page lead there ([two addresses](operations.md#one-label-studio-two-addresses)). By default it
    is Label Studio's `LABEL_STUDIO_HOST`."""
    label_studio_token: str | None = Field(default=None, repr=False)
    """A personal access token, or a legacy token; sent to `LABELNEXT_LABEL_STUDIO_URL` only. Secret."""
    local_files_root: Path | None = None
    """The folder behind `/data/local-files`: set it to read these files from disk instead of through Label Studio."""
    allowed_origins: Urls = ()
    """Origins at private addresses from which images may be fetched, separated by commas."""
    max_megapixels: Count = MAX_MEGAPIXELS
    """The largest image that is decoded, in millions of pixels. JPEGs that are not progressive may be larger: they are
    decoded at a fraction of their size, and that counts. A decoded pixel takes up to 12 bytes, and two images of 50
    million are in memory at a time."""
    basic_auth: Annotated[str, parsed(_parse_basic_auth)] | None = Field(default=None, repr=False)
    """`user:password` that the server requires on all routes except those under [Health](operations.md#health), and
    that the trainer sends. Enter the same when you connect the model in Label Studio. Secret."""
    webhook_secret: Annotated[str, parsed(_parse_header_token)] | None = Field(default=None, repr=False)
    """A bearer token that the server's `/webhook` accepts besides `LABELNEXT_BASIC_AUTH`: Label Studio's events carry
    no password, so `trainer watch` makes them carry this token. Without `LABELNEXT_BASIC_AUTH`, `/webhook` accepts
    nothing else, and refuses Start Training, which cannot send it. Secret."""

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Return the settings in the environment; empty variables count as not set.

        Raises:
            ConfigError: lists every invalid variable.
        """
        named = {item.name: environ.get(PREFIX + item.name.upper(), "").strip() for item in fields(cls)}
        given: dict[str, Any] = {name: value for name, value in named.items() if value}
        faults = [f"{name} {reason}" for name, reason in _REFUSED.items() if environ.get(name, "").strip()]
        try:
            read = cls(**given)
        except ValidationError as err:
            secrets = {item.name for item in fields(cls) if not item.repr}
            faults += [
                f"{PREFIX}{name.upper()} must be {expected}, got {quote(given[name], secret=name in secrets)}"
                for name, expected in explain_errors(err)
            ]
        if faults:
            raise ConfigError("; ".join(faults))
        return read

    def fetch_settings(self) -> FetchSettings:
        """Return the settings for fetching images, with the default limits."""
        return FetchSettings(
            label_studio_url=self.label_studio_url,
            label_studio_public_url=self.label_studio_public_url,
            api_token=self.label_studio_token,
            local_files_root=self.local_files_root,
            allowed_origins=self.allowed_origins,
        )

    def describe(self) -> dict[str, object]:
        """Return all settings for the log, with "set" in place of secrets."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        shown = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        return shown | {item.name: values[item.name] and "set" for item in fields(self) if not item.repr}


def explain_errors(err: ValidationError) -> Iterator[tuple[str, str]]:
    """Yield each invalid field once with what is expected; the value is omitted, since it may be secret."""
    faults = {str(fault["loc"][0]) if fault["loc"] else "": fault for fault in reversed(err.errors())}
    for name, fault in reversed(faults.items()):
        yield name, _EXPECTED.get(fault["type"], re.sub("^(Input should be|Value error,) ", "", fault["msg"]))


def quote(value: str, *, secret: bool = False) -> str:
    """Return a value for an error message, without secrets."""
    if secret:
        return "a value that is not shown"
    return "one with a password" if "@" in value else repr(value)


def field_docstring(kind: type, name: str) -> str:
    """Return the docstring of a field as one line, also if a base class declares it."""
    declared = (getattr(base, "__pydantic_fields__", {}).get(name) for base in kind.__mro__)
    docstring = next((info.description for info in declared if info and info.description), "")
    return " ".join(docstring.split())


def format_default(default: object) -> str:
    """Return a default for documentation; empty without one."""
    if default is None or default is False or default == ():
        return ""
    if default is True:
        return "on"
    return (",".join(map(str, default)) if isinstance(default, tuple) else f"{default}").removesuffix(".0")
