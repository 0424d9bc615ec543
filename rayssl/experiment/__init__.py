"""The configuration of an experiment, and the job that follows from it."""
