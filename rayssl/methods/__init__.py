"""One file a method: which views, heads, losses and memory it uses."""
