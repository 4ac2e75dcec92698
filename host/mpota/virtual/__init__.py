"""A board without hardware: flash with NOR rules, serial ports, a radio, real MicroPython."""
