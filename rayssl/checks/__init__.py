"""What every component must hold to, tried on one of them: ``rayssl check NAME``."""
