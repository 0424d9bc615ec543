"""What the encoder sees: segments and their distortion."""
