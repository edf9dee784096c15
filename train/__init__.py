"""Training: runs, their settings, steps and records, and the searches made of them."""
