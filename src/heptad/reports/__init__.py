"""What is said of finished runs."""
