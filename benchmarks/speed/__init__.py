"""What the engine and several ranks cost."""
