"""Weights fitted, and plans chosen, with the model in the loop."""
