"""What is on disk: shards, sources, decoding, labels; and speech that is generated."""
