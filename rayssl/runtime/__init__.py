"""Everything that runs on Ray. No other package imports ray."""
