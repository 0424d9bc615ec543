"""Where a run's figures go."""
