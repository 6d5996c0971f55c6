"""All errors that the product raises on purpose.

Reading an image raises FetchError or DecodeError, opening a version RepositoryError, and validating it InvalidVersion.
Messages say what was expected, what was found and what to do. `status` and `code` are sent to HTTP clients; classes
that never reach one keep the defaults.
"""

import re
from collections.abc import Sequence


def with_subject(subject: str, detail: str) -> str:
    """Return a message that begins with its subject, unless it names the subject already."""
    named = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", detail)
    return detail if named else f"{subject}: {detail}"


def name_some(names: Sequence[str], *, limit: int, separator: str = ", ") -> str:
    """Return the first `limit` names, and how many more there are."""
    more = len(names) - limit
    return separator.join(names[:limit]) + (f" and {more} more" if more > 0 else "")


class LabelnextError(Exception):
    """Base class of expected failures; the message is meant for the user."""

    status = 500
    code = "internal"


class ConfigError(LabelnextError):
    """Settings, arguments or a labelling config are invalid."""

    status = 400
    code = "bad_config"


class LabelMismatch(ConfigError):
    """The labels of the project are not those that the model was trained on."""

    code = "label_mismatch"


class AmbiguousProject(LabelMismatch):
    """Several models know the labels of the project, and nothing tells which of them is meant."""

    code = "ambiguous_project"


class DiskFull(LabelnextError, OSError):
    """The disk is full. An OSError, so that callers treat it like any other failing disk."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.strerror = message
        self.errno = number

    def __str__(self) -> str:
        """Return the message without the error number, which other OSErrors put in front of it."""
        return str(self.strerror)


class RepositoryError(LabelnextError):
    """The model repository has no usable version."""

    status = 503
    code = "repository"


class NothingPublished(RepositoryError):
    """No version has been published yet."""


class VersionNotFound(RepositoryError):
    """The repository has no version of this name."""


class VersionInUse(RepositoryError):
    """A version that is current or open cannot be removed."""


class ManifestError(RepositoryError):
    """A manifest does not follow the contract."""


class DigestError(RepositoryError):
    """A file differs from its digest in the manifest."""


class SignatureError(RepositoryError):
    """A manifest is not signed with the trusted key."""


class PublishConflict(RepositoryError):
    """Another version became current while this one was being published."""


class RepositoryUnreachable(RepositoryError, OSError):
    """A bucket does not answer, or refuses. An OSError, so that callers treat it like a failing disk."""

    code = "repository_unreachable"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.strerror = message


class InvalidVersion(LabelnextError):
    """A version failed its validation."""


class UnsafeGraph(InvalidVersion):
    """A graph refers to files outside its version, or claims contents that it does not have."""


class LoweringError(InvalidVersion):
    """A graph cannot be lowered to masked passes."""


class DropoutDead(InvalidVersion):
    """The stochastic passes do not differ as they must."""


class ProbeMismatch(InvalidVersion):
    """The results on the probe differ from the trainer's."""


class PrecisionRejected(InvalidVersion):
    """A backbone in reduced precision ranks the probe differently; the version may still be served in fp32."""


class ImageError(LabelnextError):
    """An image cannot be scored."""

    status = 422
    code = "image"
    later = False
    """Whether it may succeed later although nobody changes the image."""


class FetchError(ImageError):
    """An image cannot be fetched."""

    code = "fetch"


class TemporaryFetchError(FetchError):
    """An image cannot be fetched for now: its host is down, slow or overloaded."""

    later = True


class DecodeError(ImageError):
    """The bytes are no image that can be scored."""

    code = "decode"


class RequestError(LabelnextError):
    """A request is malformed: Label Studio would not send it."""

    status = 400
    code = "bad_request"


class Unavailable(LabelnextError):
    """The server cannot answer in time, or at all for now."""

    status = 503
    code = "unavailable"


class UnknownModel(LabelnextError):
    """The repository has no model of this name."""

    status = 404
    code = "unknown_model"


class OtherVersion(LabelnextError):
    """The requested version is not in use."""

    status = 409
    code = "other_version"


class LabelError(LabelnextError):
    """No classifier can be trained on these labels."""


class TrainingError(LabelnextError):
    """Training did not produce a usable model."""
