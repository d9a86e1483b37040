"""What we measure: one folder per kind of question, rows in results/."""
