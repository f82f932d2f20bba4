"""What the student is pulled towards."""
