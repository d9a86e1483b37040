"""What the search predicts, and how far its plans carry."""
