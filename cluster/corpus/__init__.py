"""Documents to a corpus: scan, filter, deduplicate, decontaminate, write shards."""
