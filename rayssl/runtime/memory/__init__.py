"""The memories as Ray actors, and the loop's clients of them."""
