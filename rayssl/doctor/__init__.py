"""What rayssl needs of a machine, its packages and its storage, tried out, with what to mend."""
