"""Embeds a corpus with Ray Data."""
