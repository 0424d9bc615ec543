"""A search over the keys of an experiment: what to try, what came of it, which trials continue. Without Ray."""
