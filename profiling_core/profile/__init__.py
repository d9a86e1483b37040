"""Profiles: what full runs measured, as data. No torch."""
