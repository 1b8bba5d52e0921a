"""Python imports this at start if the folder is on PYTHONPATH: files are read in many small splits."""

from cluster.readers import splits

splits.SPLIT_BYTES = 400_000
