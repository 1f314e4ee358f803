"""Room of slow work: watching the sample log for drift."""
