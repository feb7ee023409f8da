"""One cache and its sources: it knows info-hashes, not repositories or mounts."""
