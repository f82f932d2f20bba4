"""Text to token ids and the exact bytes that they stand for."""
