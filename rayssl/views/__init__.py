"""The input of the encoder: segments of utterances, distorted and augmented."""
