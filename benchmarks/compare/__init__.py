"""Every policy at equal compute."""
