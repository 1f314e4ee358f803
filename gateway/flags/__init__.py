"""Workshop of flags: what is released to whom, how that is decided, and where it is kept."""
