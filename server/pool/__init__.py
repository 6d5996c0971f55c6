"""The score pool: scores images that never enter Label Studio, from parquet files to parquet files, on any machines.

`shards` reads and writes the files, `worker` scores one file as the server would, `job` scores all that have no scores
yet, and `cluster` runs workers on Ray.
"""
