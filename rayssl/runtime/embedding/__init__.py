"""A corpus to embeddings by Ray Data."""
