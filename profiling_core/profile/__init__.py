"""What full runs said: profiles as data. No torch."""
