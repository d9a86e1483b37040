"""A profile and a budget in, a plan out. NumPy alone, no model runs."""
