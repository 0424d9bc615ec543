"""Where raw audio comes from, a file for each reader. `base` is the seam, `checked` what the rest of rayssl calls."""
