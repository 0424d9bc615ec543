"""rayssl: large-scale self- and semi-supervised audio training on Ray."""

__version__ = "0.1.0"
