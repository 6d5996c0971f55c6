"""The trainer's environment variables, and the command-line options for labels and training.

Imports no torch, so that `--help` and the commands on the repository are fast.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from contract.commands import Option
from contract.errors import ConfigError
from contract.scores.holdout import DEFAULT_SHARE
from contract.settings import DECLARED, DEFAULT_MODEL, Count, SharedSettings, Url
from contract.versions.location import open_repository
from contract.versions.manifest import DEFAULT_PASSES
from contract.versions.repository import Repository
from contract.versions.signatures import Keys

Part = Literal["all", "classifier"]
"""The trained part of the network: backbone and head, or only the head."""

Head = Literal["small", "vgg"]
"""The head: two small hidden layers, or VGG's own classifier."""

Precision = Literal["auto", "fp32"]

Device = Literal["auto", "cpu", "cuda"]

Project = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
ShareOrNone = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Control = Annotated[str | None, Option(metavar="NAME")]
Backbone = Annotated[str, Option(metavar="NAME|FILE.onnx")]
Pixels = Annotated[Count | None, Option(metavar="PIXELS")]
StartWeights = Annotated[str, Option(metavar="imagenet|none|FILE")]
HoldoutShare = Annotated[ShareOrNone, Option(metavar="SHARE")]
Server = Annotated[
    Url | None,
    Option(metavar="URL", repeat_error="for several servers, use the address of a proxy (docs/operations.md, Sizing)"),
]


@dataclass(frozen=True, slots=True, config=DECLARED)
class Source:
    """Where the labels come from; exactly one of `project`, `export` and `images` is set."""

    project: Annotated[Project | None, Option(metavar="ID")] = None
    """A Label Studio project's number."""
    export: Annotated[Path | None, Option(metavar="FILE")] = None
    """A Label Studio export in JSON."""
    images: Annotated[Path | None, Option(metavar="DIR")] = None
    """A folder of class folders."""
    label_config: Annotated[Path | None, Option(metavar="FILE")] = None
    """The labelling config (XML) that belongs to `--export`."""
    control: Control = None
    """Name of the Choices control to learn, if there are several."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if [self.project, self.export, self.images].count(None) != 2:
            raise ValueError("expected exactly one of --project, --export and --images")
        if self.label_config is not None and self.export is None:
            raise ConfigError("--label-config is only for --export; omit it")
        return self


@dataclass(frozen=True, slots=True, config=DECLARED)
class Training:
    """How to train."""

    weights: StartWeights = "imagenet"
    """Weights to start from; FILE is a state dict in the network's own keys."""
    backbone: Backbone = "vgg16"
    """The network that turns an image into features: one of torchvision's classifiers, efficientnet_lite0, one of
    timm's networks if timm is installed, or an ONNX file ([Backbones](backbones.md))."""
    part: Annotated[Part | None, Option("--train", choices=get_args(Part))] = None
    """What to train: only the head, or the backbone too (default: classifier, or all with `--weights none`)."""
    head: Annotated[Head, Option(choices=get_args(Head))] = "small"
    """What follows the backbone: two hidden layers (small), or VGG's own classifier of 4,096 units, loaded from the
    weights if they have it (vgg)."""
    image_size: Pixels = None
    """Width and height of the network's input, in pixels (default: those of the backbone's training, 224 for VGG)."""
    epochs: Count | None = None
    """Passes over the training images (default: depends on their number)."""
    learning_rate: Annotated[float | None, Field(gt=0, lt=10, allow_inf_nan=False), Option(metavar="RATE")] = None
    """Learning rate of the optimiser (default: depends on `--train`)."""
    weight_decay: Annotated[float | None, Field(ge=0, lt=1, allow_inf_nan=False), Option(metavar="RATE")] = None
    """Weight decay of the optimiser (default: depends on `--train`)."""
    class_balance: Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False), Option(metavar="POWER")] = None
    """Power of the inverse class frequency in the loss: 1 gives all classes equal weight, 0 all images (default: 1)."""
    pseudo_labels: bool = True
    """Train the small head also on unlabelled images, with its most confident predictions as labels: in a project on
    images whose features are cached on this host, in `simulate` on the pool."""
    units: Count | None = None
    """Units in each hidden layer of the small head (default: 256)."""
    dropout: Annotated[Share | None, Option(metavar="P")] = None
    """Dropout probability (default: 0.6 in new layers, 0.5 in loaded ones)."""
    validation: Annotated[Share, Option(metavar="SHARE")] = 0.2
    """Share of the labelled images to measure on while the random holdout is too small. The published head is trained
    on all labelled images."""
    holdout_share: HoldoutShare = DEFAULT_SHARE
    """Share of a project's tasks in the random holdout, to measure on; 0 for none."""
    passes: Annotated[int, Field(ge=2), Option(metavar="T")] = DEFAULT_PASSES
    """Stochastic passes per image, in the trainer and by default in the server."""
    precision: Annotated[Precision, Option(choices=get_args(Precision))] = "auto"
    """Precision of a frozen backbone: auto uses 8-bit integers if they are as good, and faster on this CPU."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all random numbers."""
    device: Annotated[Device, Option(choices=get_args(Device))] = "auto"
    """Device to train on."""

    @property
    def trained_part(self) -> Part:
        """The part to train; the default depends on the weights."""
        return self.part or ("all" if self.weights == "none" else "classifier")

    @property
    def uses_pseudo_labels(self) -> bool:
        """Whether to use pseudo-labels: only with the small head, since others take long to train twice."""
        return self.pseudo_labels and self.trained_part == "classifier" and self.head == "small"


@dataclass(frozen=True, slots=True, kw_only=True, config=DECLARED)
class Environment(SharedSettings):
    """Settings from the environment, for all commands."""

    model: str = DEFAULT_MODEL
    """The model in the repository: the name of its folder. With several projects, `watch` uses one model for each
    ([Several projects](operations.md#several-projects))."""
    signing_key: Path | None = None
    """The path of a minisign secret key without a password, which signs versions; `python -m trainer keygen FOLDER`
    creates a pair. The content of the file is secret."""
    cache: Path = Path(".cache/images")
    """Folder for downloaded images. They are revalidated before each use; hosts that send neither `ETag` nor
    `Last-Modified` do not support this, so their images are downloaded again."""
    image_cache_mb: Annotated[int, Field(ge=0)] = 8192
    """Size limit of `LABELNEXT_CACHE` in MiB; the least recently used images are evicted first. `0` disables it."""
    cache_dir: Path = Path(".cache/features")
    """Folder for features and the backbones that computed them; servers on the same host may share it."""
    cache_mb: Count = 4096
    """Size limit of the features in MiB; those written longest ago are evicted first."""
    server: Url = "http://localhost:9090"
    """The server that scores for `rank` and `watch`, or the proxy in front of several
    ([Sizing](operations.md#sizing))."""

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read and validate the variables; raise ConfigError for invalid and for renamed ones."""
        if environ.get("LABELNEXT_SERVERS", "").strip():
            raise ConfigError(
                "LABELNEXT_SERVERS was renamed to LABELNEXT_SERVER, which is one address; for several servers, use the "
                "address of a proxy (docs/operations.md, Sizing)"
            )
        return super(Environment, cls).read(environ)  # noqa: UP008  # with slots, super() without arguments fails

    def keys(self) -> Keys:
        """Return the keys that sign and verify versions; raise ConfigError if one cannot be used."""
        return Keys.read(signing=self.signing_key, verifying=self.verify_key)

    def repository(self) -> Repository:
        """Open the model's repository; raise ConfigError if it cannot be opened or a key cannot be used."""
        return open_repository(self.models, self.model, self.version_cache, keys=self.keys())

    def label_studio(self) -> tuple[str, str]:
        """Return Label Studio's address and token; raise ConfigError if one is not set."""
        if not self.label_studio_url or not self.label_studio_token:
            raise ConfigError(
                "set LABELNEXT_LABEL_STUDIO_URL and LABELNEXT_LABEL_STUDIO_TOKEN, which a Label Studio project needs"
            )
        return self.label_studio_url, self.label_studio_token


def check_weights(weights: str) -> None:
    """Raise ConfigError if `--weights` is a file that does not exist."""
    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        raise ConfigError(f"--weights {weights}: no such file; expected imagenet, none or a file")
