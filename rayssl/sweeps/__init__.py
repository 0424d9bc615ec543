"""A search over the keys of an experiment: what to try, what came of it, what to go on with. Without Ray."""
