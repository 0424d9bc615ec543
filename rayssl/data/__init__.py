"""What is on disk: shards, sources, decoding, labels, synthetic corpora."""
