"""The restart after an update."""


def ota_reboot(delay=10):
    """Count down ``delay`` seconds, then reset the board into the app that is to boot."""
    from time import sleep

    from machine import reset

    for left in range(delay, 0, -1):
        print("\rRebooting in %2d seconds (ctrl-C to cancel)" % left, end="")
        sleep(1)
    print()
    reset()
