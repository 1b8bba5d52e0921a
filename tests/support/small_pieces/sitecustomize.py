"""In processes that find this folder on their path a corpus is read in many small pieces."""

from cluster.readers import splits

splits.PIECE_BYTES = 400_000
