"""In which order images are to be labelled: strategies, near-duplicates, the audit slice. Reads and writes nothing."""
