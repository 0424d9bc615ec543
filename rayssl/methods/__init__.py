"""One file for each method: the views, heads, losses and memory that it uses."""
