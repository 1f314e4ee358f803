"""The tests, in the same folders as the code; builders and live are what they share."""
