"""Long recordings as segments: where speech is, what comes twice, and what was left out."""
