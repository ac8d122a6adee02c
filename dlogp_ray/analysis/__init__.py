"""What runs say, and how people see it."""
