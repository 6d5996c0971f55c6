"""baal, and of it only what the trainer uses.

The one place that imports it: importing baal sets up logging for the whole process, to stdout and through a part of
structlog that is deprecated. Here that is undone; what baal warns of goes to stderr, and stdout stays the caller's.
"""

import logging
import sys
import warnings

import structlog

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`structlog.threadlocal` is deprecated", DeprecationWarning)
    from baal.active.heuristics import BALD as BaalBALD
    from baal.bayesian.dropout import Dropout as ActiveDropout
    from baal.bayesian.dropout import patch_module
    from baal.modelwrapper import ModelWrapper, TrainingArgs

structlog.reset_defaults()
structlog.configure(
    wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    logger_factory=structlog.PrintLoggerFactory(sys.stderr),
)

__all__ = ["ActiveDropout", "BaalBALD", "ModelWrapper", "TrainingArgs", "patch_module"]
