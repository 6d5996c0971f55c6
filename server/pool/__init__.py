"""The score pool: scores images that never enter Label Studio, from parquet files to parquet files, on any machines.

`shards` knows the files, `worker` scores one file as the server would, `job` sees to it that all are, and `cluster`
alone knows Ray.
"""
