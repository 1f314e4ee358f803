"""Converters: from a fitted model to a verified model package."""
