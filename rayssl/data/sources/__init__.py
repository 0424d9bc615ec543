"""Where raw audio comes from; one file for each reader. `base` is the interface; rayssl calls it through `checked`."""
