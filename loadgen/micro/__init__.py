"""`make bench`: the parts on the hot path, each by itself."""
