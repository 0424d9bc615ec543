"""What is remembered between steps: pure, with a state_dict."""
