"""A board without hardware: flash with NOR rules, a bootloader model, and real MicroPython."""
