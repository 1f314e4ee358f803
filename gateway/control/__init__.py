"""Room of control: the one process that changes flags, and tells how the gateway does."""
