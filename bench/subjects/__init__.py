"""The subjects of benchmarks: versions, photos, sets of labelled images."""
