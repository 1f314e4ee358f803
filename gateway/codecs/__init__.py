"""Workshop of wire formats: bytes to named tensors and back, one file per protocol."""
