"""What every rank sees of every step, by arithmetic from the manifest."""
