"""What may be concluded from counts that are looked at all the time: pure functions of numbers, no clock, no I/O."""
