"""Every error that the product raises on purpose.

Bytes become a decoded image (FetchError, DecodeError), an artefact becomes a verified version (RepositoryError) and
then a validated one (InvalidVersion): the class names the step that failed. Messages say what was expected, what
came and what to do. `status` and `code` are what an HTTP client sees; classes that no request meets keep the defaults.
"""

import re
from collections.abc import Sequence


def with_subject(subject: str, detail: str) -> str:
    """A message with what it is about in front of it, unless it names that by itself."""
    named = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", detail)
    return detail if named else f"{subject}: {detail}"


def name_some(names: Sequence[str], *, most: int, between: str = ", ") -> str:
    """The first names of a message, at most so many, and how many more there are."""
    more = len(names) - most
    return between.join(names[:most]) + (f" and {more} more" if more > 0 else "")


class LabelnextError(Exception):
    """Failed in a way that the product foresaw; the message is meant for the person who runs it."""

    status = 500
    code = "internal"


class ConfigError(LabelnextError):
    """Was given settings, arguments or a labelling config that cannot work."""

    status = 400
    code = "bad_config"


class LabelMismatch(ConfigError):
    """Met a project whose labels are not those that a model was trained on."""

    code = "label_mismatch"


class AmbiguousProject(LabelMismatch):
    """Met a project whose labels several models know, and nothing that tells which of them is its own."""

    code = "ambiguous_project"


class DiskFull(LabelnextError, OSError):
    """Found no room to write: what callers do about a disk that fails holds for it, too."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.strerror = message
        self.errno = number

    def __str__(self) -> str:
        """Return the message, without the number that other OSErrors have in front of it."""
        return str(self.strerror)


class RepositoryError(LabelnextError):
    """Found no usable version in the model repository."""

    status = 503
    code = "repository"


class NothingPublished(RepositoryError):
    """Found a repository in which no version has been published yet."""


class VersionNotFound(RepositoryError):
    """Was asked for a version that the repository does not hold."""


class VersionInUse(RepositoryError):
    """Was to remove a version that is current, or that somebody has open."""


class ManifestError(RepositoryError):
    """Read a manifest that does not follow the contract."""


class DigestError(RepositoryError):
    """Found a file that differs from the one its manifest describes."""


class SignatureError(RepositoryError):
    """Found a manifest without a signature by the key that is trusted."""


class PublishConflict(RepositoryError):
    """Found that another version had become current while this one was published."""


class RepositoryUnreachable(RepositoryError, OSError):
    """Got no answer from a bucket, or a refusal: what callers do about a disk that fails holds for it, too."""

    code = "repository_unreachable"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.strerror = message


class InvalidVersion(LabelnextError):
    """Refused a version that did not pass its validation."""


class UnsafeGraph(InvalidVersion):
    """Met a graph that reaches out of its version, or claims what is not in it."""


class LoweringError(InvalidVersion):
    """Met a graph that cannot be turned into masked passes."""


class DropoutDead(InvalidVersion):
    """Found passes that do not differ where they must."""


class ProbeMismatch(InvalidVersion):
    """Computed other numbers on the probe than the trainer did."""


class PrecisionRefused(InvalidVersion):
    """Ranked the probe otherwise in reduced precision than the trainer did; in fp32 the version may still be served."""


class ImageError(LabelnextError):
    """Could not score one image."""

    status = 422
    code = "image"
    later = False
    """Whether it may be scored at another time, although nobody changes it."""


class FetchError(ImageError):
    """Could not get an image's bytes."""

    code = "fetch"


class TemporaryFetchError(FetchError):
    """Could not get an image's bytes, for a reason that passes: a host that is down, slow or has too much to do."""

    later = True


class DecodeError(ImageError):
    """Got bytes that are not an image that can be scored."""

    code = "decode"


class RequestError(LabelnextError):
    """Was sent a request that Label Studio would not send."""

    status = 400
    code = "bad_request"


class Unavailable(LabelnextError):
    """Could not answer in time, or at all for now."""

    status = 503
    code = "unavailable"


class UnknownModel(LabelnextError):
    """Was asked for a model that the repository does not hold."""

    status = 404
    code = "unknown_model"


class OtherVersion(LabelnextError):
    """Was asked for another version than the one in use."""

    status = 409
    code = "other_version"


class LabelError(LabelnextError):
    """Was given labels that no classifier can be trained on."""


class TrainingError(LabelnextError):
    """Trained, or tried to, without ending in a usable model."""
