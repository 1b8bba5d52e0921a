"""In processes that find this folder on their path a corpus is read in many small pieces."""

from cluster import pieces

pieces.PIECE_BYTES = 400_000
