"""What ESP-IDF will do: which app boots, and why another one does not."""
