"""What `make chaos` does to a running gateway, a module per family of faults; chaos.py lists them all."""
