"""The folder of a run: writes down what exactly ran, and reads it back."""
