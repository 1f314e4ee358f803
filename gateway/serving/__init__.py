"""Room of predictions: the worker processes that answer them."""
