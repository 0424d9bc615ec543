"""The memory of utterances (SSPS): references, positives and their clustering."""
