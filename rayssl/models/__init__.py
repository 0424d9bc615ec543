"""Waveform to embedding."""
