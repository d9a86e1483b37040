"""Weights fitted with the model in the loop."""

PASSES = 2  # of a refit, where no number is given
