"""Audio on disk: sources, decoding, shards, labels, splits and trials; and generated speech."""
