"""What a ranking is told. Imports no torch, for the command line takes its options from here."""

from typing import Annotated

from pydantic.dataclasses import dataclass

from contract.commands import Option
from contract.scores.holdout import DEFAULT_SHARE
from contract.settings import DECLARED, Count
from trainer.ordering.strategies import DEFAULT_STRATEGY, STRATEGIES
from trainer.settings import Backbone, Control, HoldoutShare, Pixels, Project, Server, StartWeights


@dataclass(frozen=True, config=DECLARED)
class Ranking:
    """How to rank. Weights, backbone and image size are those of a cold start: a version has its own."""

    server: Server = None
    """The inference server to score with, or a proxy before several (default: LABELNEXT_SERVER)."""
    strategy: Annotated[str, Option(choices=STRATEGIES)] = DEFAULT_STRATEGY
    """What comes first."""
    holdout_share: HoldoutShare = DEFAULT_SHARE
    """Of the tasks, drawn at random to measure on, which the strategy never places; 0 for none."""
    batch_size: Annotated[Count, Option(metavar="K")] = 200
    """How many are about to be labelled: so many are chosen with regard to each other."""
    keep_duplicates: bool = False
    """Do not put near-duplicates of an image behind all others."""
    keep_sampling: bool = False
    """Leave the project's task sampling as it is set in Label Studio."""
    force: bool = False
    """Rank all unlabelled tasks anew, although this version has ranked them."""
    incomplete: bool = False
    """Replace a ranking even if more than 5 % of its tasks cannot be scored now; these keep their places."""
    dry_run: bool = False
    """Only score and say which would come first."""
    control: Control = None
    """Name of the Choices whose labels are counted, where the version does not say."""
    weights: StartWeights = "imagenet"
    """To start from before there is a version; FILE is a state dict in torchvision's keys."""
    backbone: Backbone = "vgg16"
    """The network before there is a version."""
    image_size: Pixels = None
    """Of a side, before there is a version."""


@dataclass(frozen=True, config=DECLARED)
class _OfProject:
    project: Annotated[Project, Option(metavar="ID")]
    """A Label Studio project's number."""


@dataclass(frozen=True, config=DECLARED)
class RankOptions(Ranking, _OfProject):
    """What to rank, and how."""
