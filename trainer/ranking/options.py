"""Options of a ranking. Imports no torch, because the command line imports this module."""

from typing import Annotated

from pydantic.dataclasses import dataclass

from contract.commands import Option
from contract.scores.holdout import DEFAULT_SHARE
from contract.scores.sure import DEFAULT_PRECISION
from contract.settings import DECLARED, Count
from trainer.ordering.strategies import DEFAULT_STRATEGY, STRATEGIES
from trainer.settings import Backbone, Control, HoldoutShare, Pixels, Project, Server, ShareOrNone, StartWeights


@dataclass(frozen=True, config=DECLARED)
class RankingOptions:
    """How to rank. Weights, backbone and image size apply only before there is a version."""

    server: Server = None
    """The server that scores, or the proxy in front of several (default: LABELNEXT_SERVER)."""
    strategy: Annotated[str, Option(choices=STRATEGIES)] = DEFAULT_STRATEGY
    """What comes first ([Strategies](strategies.md))."""
    holdout_share: HoldoutShare = DEFAULT_SHARE
    """Share of the tasks in the random holdout, which the strategy does not order; 0 for none."""
    batch_size: Annotated[Count, Option(metavar="K")] = 200
    """How many tasks to choose jointly: about as many as are labelled before the next ranking."""
    sure: Annotated[ShareOrNone, Option(metavar="PRECISION")] = DEFAULT_PRECISION
    """Minimum share of right labels among those offered for bulk confirmation; 0 offers none."""
    keep_duplicates: bool = False
    """Leave near-duplicates where the strategy puts them."""
    keep_sampling: bool = False
    """Do not change the project's task sampling."""
    tabs: bool = True
    """Keep tabs in the Data Manager: what to label next, to confirm and to look at again
    ([Tabs](label-studio.md#tabs))."""
    force: bool = False
    """Rank all unlabelled tasks again, even if this version has ranked them."""
    incomplete: bool = False
    """Rank even if more than 5 % of the tasks cannot be scored now; those keep their places."""
    dry_run: bool = False
    """Only score, and show which tasks would come first."""
    control: Control = None
    """Name of the Choices control whose labels are counted, if the version does not say."""
    weights: StartWeights = "imagenet"
    """Weights of the cold start's network; FILE is a state dict in its own keys."""
    backbone: Backbone = "vgg16"
    """The cold start's network."""
    image_size: Pixels = None
    """Width and height of its input, in pixels."""


@dataclass(frozen=True, config=DECLARED)
class ProjectOption:
    """The option for the project."""

    project: Annotated[Project, Option(metavar="ID")]
    """A Label Studio project's number."""


@dataclass(frozen=True, config=DECLARED)
class RankOptions(RankingOptions, ProjectOption):
    """All options of a ranking."""
