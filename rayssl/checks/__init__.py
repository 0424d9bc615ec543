"""``rayssl check NAME``: tests a component against the rules that every component must follow."""
