"""mpota: over-the-air updates for MicroPython on ESP32 boards, the desk side."""

__version__ = "0.1.0"
