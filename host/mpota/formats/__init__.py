"""Bytes to frozen values and back: images, partition tables, otadata. No I/O."""
