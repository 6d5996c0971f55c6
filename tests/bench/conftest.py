# OpenVINO and torch's exporter in one process end in a segmentation fault, so these run only when they are named, in a
# process of their own; `make test` does so where the requirements of the benches are installed.
collect_ignore = ["test_passes.py", "test_single_pass.py"]
