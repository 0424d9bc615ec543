"""Random draws by key: the same key gives the same number, in NumPy and in torch."""
