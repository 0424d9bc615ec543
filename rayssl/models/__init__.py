"""From waveform to embedding: front ends, backbones and heads."""
