"""What a job is: its configuration, and everything that follows from it."""
