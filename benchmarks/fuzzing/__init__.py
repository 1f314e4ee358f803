"""What `make fuzz` sends to a running gateway, and what must come back; fuzz.py runs it."""
