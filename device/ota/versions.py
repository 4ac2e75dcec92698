"""Which of two versions is the older one."""


def version_key(version):
    """Sorts versions: numbers as numbers, 2.1 as 2.1.0.0, 2.1.0-rc1 before 2.1.0."""
    numbers, _, suffix = str(version).partition("-")
    parts = [int(number) if number.isdigit() else 0 for number in numbers.split(".")]
    return tuple(parts + [0] * (4 - len(parts))), not suffix, suffix


def is_older(version, other):
    return version_key(version) < version_key(other)
