"""``python -m mpota``."""

from mpota.cli import main

main()
