"""The order in which images should be labelled: strategies, near-duplicates, random holdout. No input or output."""
