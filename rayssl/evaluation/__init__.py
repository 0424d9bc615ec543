"""A frozen encoder to figures."""
