"""Networks of any width: one factor on every number of channels."""


def scaled(channels: int, width: float) -> int:
    """`channels * width` rounded to a multiple of 8, at least 8; a multiple of 8 stays itself at width 1.

    Raises:
        ValueError: width is not positive.
    """
    if not width > 0:
        raise ValueError(f"width: expected a positive factor, got {width}")
    return max(8, 8 * round(channels * width / 8))
