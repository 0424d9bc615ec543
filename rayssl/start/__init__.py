"""The first two files of a user's own data: what lies there, what can be learned from it, and with which settings."""
