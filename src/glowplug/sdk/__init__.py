"""What users write in their app files, and the runner inside their containers."""
