"""Sizes of memory as they are told: everywhere in one unit."""


def binary(num_bytes: float) -> str:
    """In GiB (2^30 bytes), as graphics cards and their drivers count; what is small in MiB, KiB or bytes."""
    for unit, exponent in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if num_bytes >= 2**exponent:
            return f"{num_bytes / 2**exponent:,.1f} {unit}"
    return f"{num_bytes:,.0f} bytes"
