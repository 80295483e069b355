"""Numbers as text: success, differences, p values, speed-ups, times and counts."""

import math

from gradprism.experiments.costs import Speedup
from gradprism.experiments.statistics import Interval


def fixed(number: float, digits: int = 1) -> str:
    """With a true minus sign, and none before a zero."""
    text = f"{number:.{digits}f}"
    return text.replace("-", "" if float(text) == 0 else "−")


def percent(interval: Interval | None, unit: str = "") -> str:
    """`31.0 [27.1, 35.2]`, of fractions in percent; with unit " %" behind the mean."""
    if interval is None:
        return "–"
    return f"{fixed(100 * interval.mean)}{unit} [{fixed(100 * interval.low)}, {fixed(100 * interval.high)}]"


def points(interval: Interval | None, unit: str = "") -> str:
    """`+2.1 [−1.0, 5.3]`: a difference of fractions in percentage points, with unit " points" behind all."""
    if interval is None:
        return "–"
    plus = "+" if float(f"{100 * interval.mean:.1f}") > 0 else ""
    return f"{plus}{percent(interval)}{unit}"


def nats(interval: Interval | None, unit: str = "") -> str:
    """`1.234 [1.201, 1.267]`, in thousandths, with the unit behind the mean; no brackets of an interval without width, as of one seed."""
    if interval is None:
        return "–"
    wide = interval.high - interval.low > 1e-9  # equal losses of several seeds may differ by a rounding
    brackets = f" [{fixed(interval.low, 3)}, {fixed(interval.high, 3)}]" if wide else ""
    return f"{fixed(interval.mean, 3)}{unit}{brackets}"


def nats_more(interval: Interval | None, unit: str = "") -> str:
    """`+0.021 [−0.010, 0.052]`: a difference of losses, with the unit behind all."""
    if interval is None:
        return "–"
    plus = "+" if float(f"{interval.mean:.3f}") > 0 else ""
    return f"{plus}{nats(interval)}{unit}"


def p_value(p: float | None) -> str:
    """`0.031`, `<0.001`."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.0005 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def times(speedup: Speedup | None) -> str:
    """`3.22× (3.10–3.40)`: ratio of means, and the range over runs where they differ."""
    if speedup is None:
        return "–"
    low, high = f"{speedup.low:.2f}", f"{speedup.high:.2f}"
    return f"{speedup.ratio:.2f}×" + (f" ({low}–{high})" if low != high else "")


def tera(flops: float) -> str:
    """`6.74`: in units of 10¹²; a dash for none."""
    return "–" if not flops else f"{flops / 1e12:,.0f}" if flops >= 1e14 else f"{flops / 1e12:.3g}"


def optional(number: float | None, digits: int) -> str:
    """A number with so many digits; a dash where it is not known."""
    return "–" if number is None else fixed(number, digits)


def duration(seconds: float) -> str:
    """`4.2 s`, `3.1 min`, `11.1 h`."""
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min")):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 3600:.1f} h"


def count(number: float) -> str:
    """Three significant digits: `950`, `15.2k`, `1.23M`; a hyphen for none, so that the table shows where work was done."""
    rounded = float(f"{number:.3g}")
    if rounded < 1000:
        return f"{rounded:g}" if number else "-"
    thousands = min(int(math.log10(rounded)) // 3, 4)
    return f"{rounded / 1000**thousands:g}{' kMGT'[thousands]}"


def share(fraction: float) -> str:
    """`1.4 %`; `<0.1 %` for what is not nothing but rounds to it."""
    return "<0.1 %" if 0 < fraction < 0.0005 else f"{100 * fraction:.1f} %"


def mib(peak: float) -> str:
    """`900`; a dash for what was not measured."""
    return f"{peak:.0f}" if peak else "–"
