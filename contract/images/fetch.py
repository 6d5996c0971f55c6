"""Fetches the bytes of an image reference, identically in training and serving.

Anybody who can import tasks writes references, and hosts answer what they like, so neither is trusted:

* Label Studio's origin gets the token, only at paths that serve images, and not after a redirect that left this origin.
  References with another of its addresses are fetched there, too. No other origin gets the token.
* Allowed origins may have any address.
* Other hosts must have public addresses only. Each redirect is checked again.
"""

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qs, quote

from contract.errors import FetchError, TemporaryFetchError
from contract.images.addresses import Resolver, resolve_addresses
from contract.images.download import (
    MAX_REFERENCE_LENGTH,
    Downloader,
    FetchContext,
    HttpUrl,
    Response,
    Validators,
    public_name,
)
from contract.images.label_studio_files import LabelStudioAddresses
from contract.images.local import decode_data_uri, read_local_file
from contract.images.urls import is_data_uri, normalise_reference
from contract.label_studio import NoAccessToken, Token

MAX_REDIRECTS: Final = 3

_TEMPORARY_STATUSES: Final = {408, 425, 429}
"""Statuses below 500 that may be temporary."""
_STORAGES: Final = ("s3://", "gs://", "azure-blob://")
_API_DESCRIPTION: Final = "/docs/api/schema/json/"
_DESCRIPTION_S: Final = 15.0
"""Timeout for the API description of Label Studio, which takes one to two seconds."""


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Allowed sources of images, and limits per image."""

    label_studio_url: str | None = None
    """Label Studio's address for this program; may have a path."""
    label_studio_public_url: str | None = None
    """Label Studio's address for browsers, as in references; None asks Label Studio for its LABEL_STUDIO_HOST."""
    api_token: str | None = field(default=None, repr=False)
    """Label Studio's token of either kind."""
    local_files_root: Path | None = None
    """Folder of /data/local-files; without one these files are fetched from Label Studio."""
    allowed_origins: tuple[str, ...] = ()
    """Origins that may have private addresses, such as http://minio:9000."""
    max_bytes: int = 20 * 2**20
    """Size of a file in bytes; larger ones are refused."""
    connect_timeout_s: float = 3.0
    """TLS included."""
    read_timeout_s: float = 10.0
    """For the headers of a response, and between two chunks of its body."""
    total_timeout_s: float = 60.0
    """For one image in total; a caller's deadline can only shorten it."""


@dataclass(frozen=True, slots=True)
class FetchResult:
    """The current content of a reference."""

    data: bytes
    """Empty if unchanged."""
    validators: Validators | None = None
    """For the next conditional request; None if nothing may be stored."""
    unchanged: bool = False
    """Whether it is the same file as the caller's."""


class Fetcher:
    """Fetches images. Thread-safe; the creator must close it."""

    def __init__(
        self,
        settings: FetchSettings,
        *,
        resolve: Resolver = resolve_addresses,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open no connection yet.

        Raises:
            ConfigError: if the token is not printable ASCII without spaces.
            ValueError: if an address in the settings is not a URL of http or https.
        """
        self._settings = settings
        self._clock = clock
        home, public = (
            HttpUrl.parse(url) if url else None for url in (settings.label_studio_url, settings.label_studio_public_url)
        )
        self._base = home.url.rstrip("/") if home else ""
        self._token = Token(settings.api_token or "", clock=clock)
        allowed = frozenset(HttpUrl.parse(text).origin for text in settings.allowed_origins)
        self._studio = LabelStudioAddresses(
            home, public, describe=self._describe_label_studio, others=allowed, clock=clock
        )
        trusted = allowed | {home.origin} if home else allowed
        self._downloader = Downloader(settings, trusted=trusted, resolve=resolve)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections."""
        self._downloader.close()

    def is_remote(self, reference: str) -> bool:
        """Return whether fetching the reference needs the network; FetchError if it is too long, or no valid text."""
        if is_data_uri(reference):
            return False
        return self._settings.local_files_root is None or self._local_file(self._normalise(reference)) is None

    def fetch(self, reference: str, *, task_id: int | None = None, project_id: int | None = None) -> bytes:
        """Return the bytes of a reference; parameters and errors are those of `fetch_if_changed`."""
        return self.fetch_if_changed(reference, task_id=task_id, project_id=project_id).data

    def source(self, reference: str, *, task_id: int | None = None, project_id: int | None = None) -> str | None:
        """Return the resolved location of a reference, as a key for its validators; None for data URIs.

        It may contain secrets, as references do.

        Raises:
            FetchError: if the reference is invalid, or needs Label Studio's address, a task or a project, and has none.
        """
        if is_data_uri(reference):
            return None
        plain = self._normalise(reference)
        if file := self._local_file(plain):
            return f"file:{file[0]}/{file[1]}"
        return self._url_of(plain, task_id, project_id)

    def fetch_if_changed(
        self,
        reference: str,
        *,
        known: Validators | None = None,
        task_id: int | None = None,
        project_id: int | None = None,
        deadline: float | None = None,
    ) -> FetchResult:
        """Return the bytes of a reference, unless its source says that they have not changed.

        Args:
            reference: http(s)://, data:, /data/upload/, /data/local-files/, s3://, gs:// or azure-blob://.
            known: the validators of the bytes that the caller has.
            task_id: for storage references, which Label Studio resolves for a task.
            project_id: used instead if there is no task.
            deadline: in seconds, on the clock of `time.monotonic`.

        Raises:
            FetchError: if the bytes cannot be fetched; TemporaryFetchError if they may be later.
        """
        end = self._clock() + self._settings.total_timeout_s
        context = FetchContext(public_name(reference), end if deadline is None else min(end, deadline), self._clock)
        context.remaining()
        if is_data_uri(reference):
            return FetchResult(decode_data_uri(reference, max_bytes=self._settings.max_bytes))
        plain = self._normalise(reference)
        if file := self._local_file(plain):
            data, validators = read_local_file(*file, max_bytes=self._settings.max_bytes, known=known)
            return FetchResult(data or b"", validators, unchanged=data is None)
        return self._download(self._url_of(plain, task_id, project_id), context, known)

    def _normalise(self, reference: str) -> str:
        """Return the normalised reference; for Label Studio's own images the path."""
        _check_text(reference)
        plain = normalise_reference(reference)
        if plain.startswith("//"):
            plain = f"{self._studio.scheme}:{plain}"
        if plain.startswith(("/", "http://", "https://")):
            return self._studio.image_path(plain) or plain
        return plain

    def _local_file(self, plain: str) -> tuple[Path, str] | None:
        """Return the root and the relative path of a local file, if files are read from disk."""
        path, _, query = plain.partition("?")
        root = self._settings.local_files_root
        if root is None or path.rstrip("/") != "/data/local-files":
            return None
        return root, parse_qs(query).get("d", [""])[0].lstrip("/")  # relative to the root, as in Label Studio

    def _url_of(self, plain: str, task_id: int | None, project_id: int | None) -> str:
        if plain.startswith(("http://", "https://")):
            return plain
        if not plain.startswith(("/", *_STORAGES)):
            raise FetchError(
                "expected an http(s), data, s3, gs or azure-blob URL or a path of Label Studio such as "
                f"/data/upload/..., got {public_name(plain)}; import the task again with one of these"
            )
        if not self._base:
            raise FetchError(
                f"{public_name(plain)} can only be fetched through Label Studio, whose address is not set; "
                "set LABELNEXT_LABEL_STUDIO_URL and LABELNEXT_LABEL_STUDIO_TOKEN"
            )
        if not plain.startswith("/"):
            return self._base + _object_path(plain, task_id, project_id)
        if self._studio.image_path(plain) is None:
            raise FetchError(
                "expected a path on which Label Studio serves images, such as /data/upload/... or "
                f"/data/local-files/..., got {public_name(plain)}; import the task again with one of these"
            )
        return self._base + plain

    def _download(self, url: str, context: FetchContext, known: Validators | None) -> FetchResult:
        """Follow redirects manually, to check each target like a reference."""
        target = _parse(url, context)
        token_may_go = True
        for _ in range(MAX_REDIRECTS + 1):
            token_may_go = token_may_go and self._studio.owns(target)
            validators = known if known and known.are_from(target) else None
            answer = self._get(target, context, with_token=token_may_go, known=validators)
            if answer.status == 304 and validators:
                return FetchResult(b"", validators, unchanged=True)
            if answer.location is None:
                if answer.status == 200:
                    return FetchResult(answer.body, answer.validators)
                message = f"{context.at(target)} answered {answer.status}, expected 200; {_advice(answer.status)}"
                raise _error_type(answer.status)(message)
            target = _follow(target, answer.location, context)
            if token_may_go and (path := self._studio.image_path(target.url)):  # a redirect to its public address
                target = _parse(self._base + path, context)
        raise FetchError(f"{context.name} redirects more than {MAX_REDIRECTS} times; import the final address")

    def _get(self, target: HttpUrl, context: FetchContext, *, with_token: bool, known: Validators | None) -> Response:
        """Send a request; after 401 once more with a new access token."""
        header = self._authorization(context) if with_token else None
        answer = self._downloader.request(target, context, authorization=header, known=known)
        if answer.status == 401 and header and self._token.renewable:
            header = self._authorization(context, refused=header)
            answer = self._downloader.request(target, context, authorization=header, known=known)
        return answer

    def _authorization(self, context: FetchContext, *, refused: str | None = None) -> str | None:
        def post(path: str, content: bytes) -> tuple[int, bytes]:
            answer = self._downloader.request(_parse(self._base + path, context), context, post=content)
            return answer.status, answer.body

        try:
            return self._token.header(post, timeout_s=context.remaining(), refused=refused)
        except TimeoutError as err:
            raise TemporaryFetchError(
                f"{context.name} was not fetched in time: {err}; check Label Studio's load"
            ) from err
        except NoAccessToken as err:
            origin = _parse(self._base, context).origin
            raise _error_type(err.status)(
                f"{context.name} needs a token, and {origin} answered {err.status} without an access token for "
                "LABELNEXT_LABEL_STUDIO_TOKEN; create a new personal access token in the account settings"
            ) from err

    def _describe_label_studio(self) -> bytes:
        """Return Label Studio's API description, which needs no token; empty if unavailable."""
        if not self._base:
            return b""
        context = FetchContext("the description of Label Studio's API", self._clock() + _DESCRIPTION_S, self._clock)
        try:
            return self._downloader.request(_parse(self._base + _API_DESCRIPTION, context), context).body
        except FetchError:
            return b""


def _object_path(reference: str, task_id: int | None, project_id: int | None) -> str:
    """Return the path at which Label Studio serves an object of a connected cloud storage."""
    if task_id is None and project_id is None:
        raise FetchError(
            f"{public_name(reference)} can only be resolved by Label Studio for a task or a project, got neither; "
            "use tasks of Label Studio, or import http(s) URLs"
        )
    owner = f"tasks/{task_id}" if task_id is not None else f"projects/{project_id}"
    return f"/{owner}/resolve/?fileuri={quote(base64.urlsafe_b64encode(reference.encode()))}"


def _check_text(reference: str) -> None:
    """Refuse references that are too long to parse, or no valid text."""
    if len(reference) > MAX_REFERENCE_LENGTH:
        raise FetchError(
            f"expected an address of at most {MAX_REFERENCE_LENGTH} characters, got {public_name(reference)}; "
            "import the task again with a shorter one"
        )
    try:
        reference.encode()
    except UnicodeEncodeError as err:  # JSON allows lone surrogates
        raise FetchError(
            "an image's address contains a lone surrogate (\\ud800 to \\udfff); import the task again"
        ) from err


def _parse(url: str, context: FetchContext) -> HttpUrl:
    try:
        return HttpUrl.parse(url)
    except ValueError as err:
        raise FetchError(f"{context.name} is {err}; correct the task's reference") from err


def _follow(target: HttpUrl, location: str, context: FetchContext) -> HttpUrl:
    try:
        return target.follow(location)
    except ValueError as err:
        raise FetchError(
            f"{context.at(target)} redirects to an address that is {err}; import the final address"
        ) from err


def _error_type(status: int) -> type[FetchError]:
    """Return the error type for a status; overload and server errors are temporary."""
    return TemporaryFetchError if status in _TEMPORARY_STATUSES or status >= 500 else FetchError


def _advice(status: int) -> str:
    if status in {401, 403}:
        return "check LABELNEXT_LABEL_STUDIO_TOKEN for Label Studio's own files, and the host's access rules for others"
    if status == 404:
        return "check that the file still exists and, for local and cloud storage, that the project has it connected"
    return "open the address in a browser to see why"
