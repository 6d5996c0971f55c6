"""From an image reference in a task to the image's bytes, the same in training and in serving.

Owns what each kind of reference means and which host may be told what. References are written by whoever may import
tasks, and hosts answer what they like, so neither is trusted:

* Label Studio's origin gets the token, on the paths that serve images and on no others. Nobody else gets it, and a
  redirect away from that origin ends it.
* Origins that the settings allow are asked wherever their addresses lie.
* Any other host is asked only if all its addresses are public. Each redirect is judged again.

Knows nothing of what the bytes are, and keeps none of them; who does can ask whether they are still the same.
"""

import base64
import binascii
import json
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qs, quote, unquote, unquote_to_bytes

from contract.access import Token
from contract.addresses import Resolver, resolve_addresses
from contract.download import (
    LONGEST_REFERENCE,
    Answer,
    Downloader,
    Errand,
    Target,
    Validators,
    public_name,
    too_large,
)
from contract.errors import ConfigError, FetchError

MAX_REDIRECTS: Final = 3

_STORAGES: Final = ("s3://", "gs://", "azure-blob://")
_MAX_ESCAPES: Final = 1_000_000
"""In a data URI: a third of a second and 200 MB. Base64 of 20 MiB has 900,000 where even + and / are escaped."""
_SERVES_IMAGES: Final = re.compile(
    r"/(data/upload/|data/local-files/|storage-data/uploaded/|(tasks|projects)/\d+/(resolve|presign)/)"
)


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Where images may come from, and the limits on each."""

    label_studio_url: str | None = None
    """Base URL of Label Studio; a path in it is kept."""
    api_token: str | None = field(default=None, repr=False)
    """A personal access token or a legacy token of Label Studio."""
    local_files_root: Path | None = None
    """The folder that /data/local-files is read from; without one, Label Studio is asked for these files."""
    allowed_origins: tuple[str, ...] = ()
    """Origins such as http://minio:9000 that may be asked although their addresses are private."""
    max_bytes: int = 20 * 2**20
    """Larger files are refused."""
    connect_timeout_s: float = 3.0
    """Time in seconds for connecting, TLS included."""
    read_timeout_s: float = 10.0
    """Time in seconds for the head of an answer, and between any two pieces of its body."""
    total_timeout_s: float = 60.0
    """Time in seconds for one image from first to last; a caller's deadline can only shorten it."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a reference stands for now."""

    data: bytes
    """The file; empty if it is unchanged."""
    validators: Validators | None = None
    """What to ask with next time; None where the source cannot be asked."""
    unchanged: bool = False
    """Whether it is the file that the caller knows; never so for who knows none."""


class Fetcher:
    """Fetches images. Made once, used by many threads, closed by its maker."""

    def __init__(
        self,
        settings: FetchSettings,
        *,
        resolve: Resolver = resolve_addresses,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open no connection yet.

        Raises:
            ConfigError: if an address in the settings is not a URL of http or https.
        """
        self._settings = settings
        self._clock = clock
        self._label_studio = _LabelStudio(settings.label_studio_url) if settings.label_studio_url else None
        self._token = Token(settings.api_token or "", clock=clock)
        trusted = {_configured(text).origin for text in settings.allowed_origins}
        if self._label_studio:
            trusted.add(self._label_studio.origin)
        self._downloader = Downloader(
            trusted=frozenset(trusted),
            resolve=resolve,
            max_bytes=settings.max_bytes,
            connect_timeout_s=settings.connect_timeout_s,
            read_timeout_s=settings.read_timeout_s,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are kept alive."""
        self._downloader.close()

    @property
    def scope(self) -> str:
        """What references without a host are relative to: Label Studio's base URL, empty where none is set."""
        return self._label_studio.base if self._label_studio else ""

    def is_remote(self, reference: str) -> bool:
        """Whether fetching the reference asks another machine."""
        return not reference.startswith("data:") and self._local_name(reference) is None

    def fetch(
        self,
        reference: str,
        *,
        task_id: int | None = None,
        project_id: int | None = None,
        deadline: float | None = None,
    ) -> bytes:
        """Return the bytes that the reference stands for.

        Args:
            reference: http(s)://, data:, /data/upload/, /data/local-files/, s3://, gs:// or azure-blob://.
            task_id: the task that the reference comes from; Label Studio resolves storage references by it.
            project_id: used in its place where there is no task.
            deadline: on the clock of `time.monotonic`, in seconds.

        Raises:
            FetchError: if the bytes cannot be had in time, or must not be.
        """
        fetched = self.fetch_if_changed(
            reference, known=None, task_id=task_id, project_id=project_id, deadline=deadline
        )
        return fetched.data

    def source(self, reference: str, *, task_id: int | None = None, project_id: int | None = None) -> str | None:
        """Name what the reference is downloaded from, for who remembers validators; None where nothing is downloaded.

        It may hold secrets, as references do.

        Raises:
            FetchError: if the reference cannot be fetched.
        """
        _check_text(reference)
        return self._url_of(reference, task_id, project_id) if self.is_remote(reference) else None

    def fetch_if_changed(
        self,
        reference: str,
        *,
        known: Validators | None,
        task_id: int | None = None,
        project_id: int | None = None,
        deadline: float | None = None,
    ) -> Fetched:
        """Return the bytes that the reference stands for, unless its source says that they are those of `known`.

        Args:
            reference: as in `fetch`.
            known: what was returned beside the bytes that the caller has; None asks for the bytes.
            task_id: as in `fetch`.
            project_id: as in `fetch`.
            deadline: as in `fetch`.

        Raises:
            FetchError: as `fetch` does.
        """
        end = self._clock() + self._settings.total_timeout_s
        errand = Errand(public_name(reference), end if deadline is None else min(end, deadline), self._clock)
        errand.remaining()
        _check_text(reference)
        if reference.startswith("data:"):
            return Fetched(_decode_data_uri(reference, self._settings.max_bytes))
        name = self._local_name(reference)
        if name is not None and self._settings.local_files_root is not None:
            return Fetched(_read_local(self._settings.local_files_root, name, self._settings.max_bytes))
        return self._download(self._url_of(reference, task_id, project_id), errand, known)

    def _local_name(self, reference: str) -> str | None:
        """The path below `local_files_root` that the reference names, where it is to be read from there."""
        if self._settings.local_files_root is None:
            return None
        path, _, query = reference.partition("?")
        if self._label_studio:
            path = self._label_studio.own_path(path)
        return parse_qs(query).get("d", [""])[0] if path.rstrip("/") == "/data/local-files" else None

    def _url_of(self, reference: str, task_id: int | None, project_id: int | None) -> str:
        if reference.startswith(("http://", "https://")):
            return reference
        if not reference.startswith(("/", *_STORAGES)):
            raise FetchError(
                "expected an http(s), data, s3, gs or azure-blob URL or a path of Label Studio such as "
                f"/data/upload/..., got {public_name(reference)}; import the task again with one of these"
            )
        if self._label_studio is None:
            raise FetchError(
                f"{public_name(reference)} can only be had through Label Studio, whose address is not set; "
                "set LABELNEXT_LABEL_STUDIO_URL and LABELNEXT_LABEL_STUDIO_TOKEN"
            )
        if reference.startswith("/"):
            return self._label_studio.url_of_path(reference)
        return self._label_studio.url_of_object(reference, task_id, project_id)

    def _download(self, url: str, errand: Errand, known: Validators | None) -> Fetched:
        """Follow redirects by hand, so that each target is judged as if the task had named it."""
        target = _parse(url, errand)
        token_may_go = True
        for _ in range(MAX_REDIRECTS + 1):
            token_may_go = token_may_go and self._label_studio is not None and self._label_studio.owns(target)
            asked_with = known if known and known.are_from(target) else None
            answer = self._get(target, errand, with_token=token_may_go, known=asked_with)
            if answer.status == 304 and asked_with:
                return Fetched(b"", asked_with, unchanged=True)
            if answer.location is None:
                return Fetched(_body(answer, target, errand), answer.validators)
            target = _follow(target, answer.location, errand)
        raise FetchError(f"{errand.asked} redirects more than {MAX_REDIRECTS} times; import the address it ends at")

    def _get(self, target: Target, errand: Errand, *, with_token: bool, known: Validators | None) -> Answer:
        """Ask once, and once more with a new access token if Label Studio no longer honours the old one."""
        header = self._authorization(errand) if with_token else None
        answer = self._downloader.request(target, errand, authorization=header, known=known)
        if answer.status == 401 and header and self._token.renewable:
            header = self._authorization(errand, refused=header)
            answer = self._downloader.request(target, errand, authorization=header, known=known)
        return answer

    def _authorization(self, errand: Errand, *, refused: str | None = None) -> str | None:
        try:
            return self._token.header(
                lambda token: self._exchange(token, errand), timeout_s=errand.remaining(), refused=refused
            )
        except TimeoutError as err:
            raise FetchError(f"{errand.asked} was not fetched in time: {err}; look at Label Studio's load") from err

    def _exchange(self, refresh_token: str, errand: Errand) -> str:
        """Label Studio's access token for a personal access token."""
        target = _parse(f"{self.scope}/api/token/refresh/", errand)
        answer = self._downloader.request(target, errand, post=json.dumps({"refresh": refresh_token}).encode())
        try:
            return str(json.loads(answer.body)["access"])
        except (ValueError, KeyError, TypeError) as err:
            raise FetchError(
                f"{errand.asked} needs a token, and {target.origin} answered {answer.status} without an access token "
                "for LABELNEXT_LABEL_STUDIO_TOKEN; create a new personal access token in the account settings"
            ) from err


class _LabelStudio:
    """Which URLs are Label Studio's own, and which of them serve images."""

    def __init__(self, url: str) -> None:
        target = _configured(url)
        self.origin = target.origin
        self.base = target.url.rstrip("/")
        self._prefix = target.path.rstrip("/")

    def own_path(self, path_or_url: str) -> str:
        """The path below the base URL, or what was given if it lies elsewhere."""
        for start in (self.base, self._prefix):
            if start and path_or_url.startswith(start + "/"):
                return path_or_url.removeprefix(start)
        return path_or_url

    def owns(self, target: Target) -> bool:
        """Whether the token may go there: to its origin, and to a path on which it serves images."""
        path = self.own_path(target.path)
        return target.origin == self.origin and not _climbs(path) and _SERVES_IMAGES.match(path) is not None

    def url_of_path(self, path: str) -> str:
        """The URL of an image that Label Studio serves."""
        path = self.own_path(path)
        if not _SERVES_IMAGES.match(path):
            raise FetchError(
                "expected a path on which Label Studio serves images, such as /data/upload/... or "
                f"/data/local-files/..., got {public_name(path)}; import the task again with one of these"
            )
        return self.base + path

    def url_of_object(self, reference: str, task_id: int | None, project_id: int | None) -> str:
        """The URL at which Label Studio hands out an object of a storage that the project has connected."""
        if task_id is None and project_id is None:
            raise FetchError(
                f"{public_name(reference)} is resolved by Label Studio for a task or a project, got neither; "
                "use tasks that Label Studio knows, or import http(s) addresses"
            )
        owner = f"tasks/{task_id}" if task_id is not None else f"projects/{project_id}"
        return f"{self.base}/{owner}/resolve/?fileuri={quote(base64.urlsafe_b64encode(reference.encode()))}"


def _check_text(reference: str) -> None:
    """Keep what is no text, or only looks like a URL, from those who would read megabytes of it by the character."""
    if len(reference) > LONGEST_REFERENCE and not reference.startswith("data:"):
        raise FetchError(
            f"expected an address of at most {LONGEST_REFERENCE} characters, got {public_name(reference)}; "
            "import the task again with a shorter one"
        )
    try:
        reference.encode()
    except UnicodeEncodeError as err:  # JSON can write a surrogate by itself, which nothing else can
        raise FetchError(
            "an image's address holds half a character, \\ud800 to \\udfff; import the task again"
        ) from err


def _climbs(path: str) -> bool:
    """Whether a path has dots that lead out of it, escaped however often: proxies in front may unescape, too."""
    while (plain := unquote(path)) != path:
        path = plain
    return ".." in re.split(r"[/\\]", path)


def _configured(url: str) -> Target:
    try:
        return Target.parse(url)
    except ValueError as err:
        raise ConfigError(
            f"expected an address of http or https such as http://minio:9000, got {public_name(url)}; "
            "correct LABELNEXT_LABEL_STUDIO_URL or LABELNEXT_ALLOWED_ORIGINS"
        ) from err


def _parse(url: str, errand: Errand) -> Target:
    try:
        return Target.parse(url)
    except ValueError as err:
        raise FetchError(f"{errand.asked} is {err}; correct the task's reference") from err


def _follow(target: Target, location: str, errand: Errand) -> Target:
    try:
        return target.follow(location)
    except ValueError as err:
        raise FetchError(
            f"{errand.at(target)} redirects to what is {err}; import the address that it should lead to"
        ) from err


def _body(answer: Answer, target: Target, errand: Errand) -> bytes:
    if answer.status == 200:
        return answer.body
    raise FetchError(f"{errand.at(target)} answered {answer.status}, expected 200; {_advice(answer.status)}")


def _advice(status: int) -> str:
    if status in {401, 403}:
        return "check LABELNEXT_LABEL_STUDIO_TOKEN for Label Studio's own files, and the host's access rules for others"
    if status == 404:
        return "check that the file is still there and, for local and cloud storage, that the project has it connected"
    return "open the address in a browser to see why"


def _read_local(root: Path, name: str, limit: int) -> bytes:
    """Read a file below the root; links are followed before the check, so that none leads out of it."""
    shown = f"the local file {public_name(name)!r}"
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root.resolve()) or not path.is_file():
            raise _not_below_root(shown)
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _not_below_root(shown)
            data = file.read(limit + 1)
    except (OSError, ValueError, RuntimeError) as err:  # a NUL in the name is a ValueError, a loop of links the last
        raise FetchError(f"{shown} cannot be read ({type(err).__name__}); check its name and permissions") from err
    if len(data) > limit:
        raise too_large(shown, limit)
    return data


def _open_at_once(path: str, flags: int) -> int:
    """Open a file, and a pipe without waiting for who writes into it."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY)


def _not_below_root(shown: str) -> FetchError:
    return FetchError(
        f"{shown} is not a file below LABELNEXT_LOCAL_FILES_ROOT; mount the folder that Label Studio serves them from"
    )


def _decode_data_uri(reference: str, limit: int) -> bytes:
    head, _, payload = reference.partition(",")
    if len(payload) > 3 * limit:  # %00, the longest spelling, takes three characters a byte
        raise too_large("data:...", limit)
    if payload.count("%") > _MAX_ESCAPES:
        raise FetchError(
            f"data:... has more than {_MAX_ESCAPES} characters escaped by %, each of which takes its time; use base64"
        )
    data = unquote_to_bytes(payload)
    try:
        if head.endswith(";base64"):
            data = base64.b64decode(data, validate=True)
    except binascii.Error as err:
        raise FetchError("data:... is not valid base64; import the image again") from err
    if not data:
        raise FetchError("data:... holds no data; expected data:image/png;base64, and then the image's bytes")
    if len(data) > limit:
        raise too_large("data:...", limit)
    return data
