"""A plan on a model."""
