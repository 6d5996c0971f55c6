"""In which order images are to be labelled: strategies, near-duplicates, random holdout. Reads and writes nothing."""
