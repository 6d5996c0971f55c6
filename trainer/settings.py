"""What the trainer is told, by the command line and by the environment.

Imports no torch, so that `--help` and the commands that only act on the repository answer at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from contract.errors import ConfigError
from contract.images.preprocess import MAX_MEGAPIXELS
from contract.scores.holdout import DEFAULT_SHARE
from contract.versions.local_cache import open_repository, parse_location
from contract.versions.manifest import DEFAULT_PASSES
from contract.versions.repository import Repository
from contract.versions.signatures import Keys, read_public_key
from trainer.labels.image_cache import DEFAULT_MB, ImageCache
from trainer.ordering.strategies import DEFAULT_STRATEGY

Part = Literal["all", "classifier", "head"]
"""What is trained: everything; the linear layers; or only what lies downstream of the first Dropout."""

Device = Literal["auto", "cpu", "cuda"]

DEFAULT_SERVER: Final = "http://localhost:9090"
"""Where a server listens unless it is told otherwise."""

ARCHITECTURES: Final = tuple(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn"))


@dataclass(frozen=True, slots=True)
class Source:
    """Where the labels come from; exactly one of `project`, `export` and `images` is set."""

    project: int | None = None
    """A Label Studio project's number."""
    export: Path | None = None
    """A Label Studio JSON export."""
    images: Path | None = None
    """A folder of class folders."""
    label_config: Path | None = None
    """The labelling config (XML) that belongs to `export`."""
    control: str | None = None
    """The `name` of the Choices tag to train on, where the config has several."""


@dataclass(frozen=True, slots=True)
class Training:
    """How to train."""

    weights: str = "imagenet"
    """`imagenet`, `none` or the path of a state dict."""
    part: Part | None = None
    """None: `classifier`, or `all` where there are no weights to start from."""
    architecture: str = "vgg16"
    image_size: int = 224
    """Pixels a side."""
    epochs: int | None = None
    """None: as many as the recipe of `part` says for the number of images."""
    learning_rate: float | None = None
    """None: the recipe's."""
    weight_decay: float | None = None
    """None: the recipe's."""
    class_balance: float | None = None
    """None: the recipe's."""
    units: int | None = None
    """Of each hidden linear layer, which then starts fresh. None: VGG's own 4,096."""
    dropout: float | None = None
    """Probability of dropping a unit. None: by whether the hidden linear layers start fresh."""
    validation: float = 0.2
    """Share of the images held out to measure on, where the audit slice is too small to."""
    audit_share: float = DEFAULT_SHARE
    """Share of a project's tasks that are drawn at random and held out to measure on; 0 for none."""
    passes: int = DEFAULT_PASSES
    """T, stochastic passes per image in the figures and, unless it is set otherwise, in the server."""
    int8: bool = False
    """Whether to publish the trunk in 8-bit integers too."""
    seed: int = 0
    device: Device = "auto"

    @property
    def trained_part(self) -> Part:
        """What is trained, also where that was left open."""
        return self.part or ("all" if self.weights == "none" else "classifier")


@dataclass(frozen=True, slots=True)
class RankOptions:
    """What to rank, and how."""

    project: int
    """A Label Studio project's number."""
    servers: tuple[str, ...] = ()
    """URLs of inference servers; empty: those of the environment."""
    strategy: str = DEFAULT_STRATEGY
    audit_share: float = DEFAULT_SHARE
    """Share of the pool that is drawn at random and never placed by the strategy."""
    first: int = 200
    """Places that are filled one after the other, each with regard to those before it."""
    keep_duplicates: bool = False
    """Whether near-duplicates are ranked like any other image."""
    keep_sampling: bool = False
    """Whether the project's task sampling is left as it is."""
    again: bool = False
    """Whether to rank anew what is ranked by this version already."""
    incomplete: bool = False
    """Whether a ranking may be replaced by one for which more than a few of its tasks cannot be scored."""
    dry_run: bool = False
    """Whether to leave Label Studio as it is."""
    control: str | None = None
    """The `name` of the Choices tag whose labels are counted, where the version does not say."""
    weights: str = "imagenet"
    """For a cold start: `imagenet`, `none` or the path of a state dict."""
    architecture: str = "vgg16"
    """For a cold start."""
    image_size: int = 224
    """Pixels a side, for a cold start; a version has its own."""


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """What to simulate."""

    images: Path
    """A folder or zip of labelled images."""
    out: Path
    """A folder for the report, and for what a study that was interrupted goes on from."""
    strategies: tuple[str, ...]
    name: str | None = None
    """For the report's title. None: that of the images."""
    manifest: Path | None = None
    """A CSV file that says what is in `images`; None where it holds class folders."""
    test_share: float = 0.25
    """Of each class, for testing, where the manifest marks no test images."""
    long_tail: float | None = None
    """Images of the largest class over those of the smallest, to which the pool is thinned out; None for as it is."""
    seeds: int = 5
    initial: int = 100
    """Labels that all strategies begin with, drawn at random."""
    query: int = 100
    """Labels between two trainings."""
    rounds: int = 8
    workers: int | None = None
    """Processes; None for as many as there are processors, or one where there is a GPU."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What the environment says, for all commands."""

    models: str | Path = Path("models")
    """The model repository: a folder, or s3://bucket/prefix."""
    model: str = "default"
    mirror: Path | None = None
    """The folder that versions are copied to from a bucket; None means one below the user's cache."""
    cache: Path = Path(".cache/images")
    image_cache_mb: int = DEFAULT_MB
    """The most that downloaded images may take there, in MiB; 0 keeps none."""
    max_megapixels: int = MAX_MEGAPIXELS
    """Of one image in memory, in millions of pixels; of most JPEGs that is a fraction of their size."""
    label_studio_url: str | None = None
    label_studio_public_url: str | None = None
    """Label Studio's address as browsers see it, and as references may have it; None asks Label Studio."""
    label_studio_token: str | None = field(default=None, repr=False)
    local_files_root: Path | None = None
    allowed_origins: tuple[str, ...] = ()
    servers: tuple[str, ...] = (DEFAULT_SERVER,)
    """URLs of the inference servers that score for `rank` and `watch`."""
    basic_auth: str | None = field(default=None, repr=False)
    """`user:password` that the servers demand."""
    webhook_secret: str | None = field(default=None, repr=False)
    """What Label Studio's webhook shows a server in place of user and password."""
    signing_key: Path | None = None
    """A minisign secret key without a password, that versions are signed with."""
    verify_key: str | None = None
    """A minisign public key; versions that are not signed by it are then refused."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Environment":
        """Read the `LABELNEXT_` variables; one that is empty counts as not set.

        Raises:
            ConfigError: if LABELNEXT_BASIC_AUTH is no user and password, LABELNEXT_VERIFY_KEY no public key,
                LABELNEXT_MODELS no place for a repository, or a number none.
        """
        given = {name: value for name, value in environ.items() if value.strip()}
        default = cls()
        root = given.get("LABELNEXT_LOCAL_FILES_ROOT")
        mirror, secret = given.get("LABELNEXT_MIRROR"), given.get("LABELNEXT_SIGNING_KEY")
        return cls(
            models=_checked_location(given.get("LABELNEXT_MODELS"), default.models),
            model=given.get("LABELNEXT_MODEL", default.model),
            mirror=Path(mirror) if mirror else None,
            cache=Path(given.get("LABELNEXT_CACHE", default.cache)),
            image_cache_mb=_whole_number(given, "LABELNEXT_IMAGE_CACHE_MB", default.image_cache_mb, least=0),
            max_megapixels=_whole_number(given, "LABELNEXT_MAX_MEGAPIXELS", default.max_megapixels, least=1),
            label_studio_url=given.get("LABELNEXT_LABEL_STUDIO_URL"),
            label_studio_public_url=given.get("LABELNEXT_LABEL_STUDIO_PUBLIC_URL"),
            label_studio_token=given.get("LABELNEXT_LABEL_STUDIO_TOKEN"),
            local_files_root=Path(root) if root else None,
            allowed_origins=_listed(given.get("LABELNEXT_ALLOWED_ORIGINS", "")),
            servers=_listed(given.get("LABELNEXT_SERVERS", "")) or default.servers,
            basic_auth=_checked_login(given.get("LABELNEXT_BASIC_AUTH")),
            webhook_secret=given.get("LABELNEXT_WEBHOOK_SECRET"),
            signing_key=Path(secret) if secret else None,
            verify_key=_checked_public_key(given.get("LABELNEXT_VERIFY_KEY")),
        )

    def keys(self) -> Keys:
        """Return what versions are signed and verified with.

        Raises:
            ConfigError: if a key cannot be read, or the two are not of one pair.
        """
        return Keys.read(signing=self.signing_key, verifying=self.verify_key)

    def repository(self) -> Repository:
        """Return the model's repository.

        Raises:
            ConfigError: if it cannot be opened, or a key cannot be used.
        """
        return open_repository(self.models, self.model, self.mirror, keys=self.keys())

    def image_cache(self) -> ImageCache:
        """Return what keeps downloaded images."""
        return ImageCache(self.cache, max_bytes=self.image_cache_mb * 2**20)

    def label_studio(self) -> tuple[str, str]:
        """Return Label Studio's address and token.

        Raises:
            ConfigError: if one is not set.
        """
        if not self.label_studio_url or not self.label_studio_token:
            raise ConfigError(
                "a Label Studio project needs LABELNEXT_LABEL_STUDIO_URL and LABELNEXT_LABEL_STUDIO_TOKEN; set both"
            )
        return self.label_studio_url, self.label_studio_token


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _whole_number(given: Mapping[str, str], name: str, default: int, *, least: int) -> int:
    text = given.get(name, str(default)).strip()
    if not text.isdecimal() or not text.isascii() or int(text) < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {text!r}")
    return int(text)


def _checked_location(text: str | None, default: str | Path) -> str | Path:
    try:
        return default if text is None else parse_location(text.strip())
    except ValueError as err:
        raise ConfigError(f"LABELNEXT_MODELS must be {err}, got {text!r}") from err


def _checked_public_key(text: str | None) -> str | None:
    try:
        return None if text is None else read_public_key(text.strip())
    except ValueError as err:
        raise ConfigError(f"LABELNEXT_VERIFY_KEY must be {err}, got {text!r}") from err


def _checked_login(text: str | None) -> str | None:
    if text is not None and not (text.partition(":")[0] and ":" in text):
        raise ConfigError("LABELNEXT_BASIC_AUTH must be user:password with a user, got something else; set it so")
    return text
