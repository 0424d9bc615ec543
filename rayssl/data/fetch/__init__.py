"""Public data sets: a catalogue, a resumable download, safe unpacking. ``rayssl fetch`` is the door to it."""
