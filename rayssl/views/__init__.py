"""What the encoder sees: segments, their distortion and augmentation."""
