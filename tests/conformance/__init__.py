"""Every hardware primitive on given bits: cases with a plain model of each, a recorder for a GPU, and the replay."""
