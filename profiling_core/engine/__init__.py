"""The engine: runs a plan on a model."""
