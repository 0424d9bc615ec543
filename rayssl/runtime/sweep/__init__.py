"""Ray Tune over the trials of a sweep."""
