"""Numbers as people read them."""

from __future__ import annotations

import math

__all__ = [
    "MINUS",
    "TIMES",
    "UNKNOWN",
    "age_text",
    "bytes_text",
    "count_text",
    "metric_label",
    "metric_text",
    "milliseconds_text",
    "rate_text",
    "seconds_text",
]

MINUS, TIMES, UNKNOWN = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"

_SPELLED = {"auroc": "AUROC", "f1": "F1", "mae": "MAE", "ndcg": "NDCG", "r2": "R²", "rmse": "RMSE"}
_AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def age_text(seconds: float) -> str:
    """In the largest unit that it has one of: `5400` -> `2 h`."""
    size, unit = next((pair for pair in _AGES if seconds >= pair[0]), _AGES[-1])
    return f"{seconds / size:.0f} {unit}"


def count_text(value: float) -> str:
    """`1234567` -> `1,234,567`."""
    return f"{value:,.0f}" if math.isfinite(value) else str(value)


def metric_label(metric: str) -> str:
    """`test/macro_f1` -> `test macro F1`."""
    words = metric.replace("/", " ").replace("_", " ").split(" ")
    return " ".join(_SPELLED.get(word, word) for word in words)


def metric_text(value: float) -> str:
    """Four decimals in the range metrics live in, four significant digits outside it."""
    if not math.isfinite(value):
        return f"{value} (not finite)"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e3 else f"{value:.4g}"


def milliseconds_text(seconds: float) -> str:
    """Three digits of what is short: `0.000051` -> `0.051 ms`; from 10 s on as `seconds_text`."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else seconds_text(seconds)


def rate_text(value: float) -> str:
    """Examples a second: whole numbers above 100."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bytes_text(value: float) -> str:
    """Decimal units, as networks are sold: `1500000` -> `1.50 MB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return (
                f"{value / size:.3g} {unit}"
                if value < 1000 * size
                else f"{value / size:,.0f} {unit}"
            )
    return f"{value:.0f} B"


def seconds_text(value: float) -> str:
    """`0.25` -> `0.25 s`, `192` -> `3 min 12 s`, `7500` -> `2 h 5 min`."""
    if not math.isfinite(value):
        return str(value)
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"
