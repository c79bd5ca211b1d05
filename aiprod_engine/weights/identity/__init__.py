"""What a file is and whether it belongs to another one, from headers alone."""
