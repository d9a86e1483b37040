"""A full run in, a profile out."""
