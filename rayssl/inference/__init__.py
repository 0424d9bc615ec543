"""What a run is good for once it is trained: read it back, embed with it, export it. Knows torch, not Ray."""
