"""What a configuration may hold: its keys with descriptions, JSON schemas for editors, and the names to choose."""
