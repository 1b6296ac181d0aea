"""The reduction: transforms of each update, exact sums, and the mean that follows from them."""

from .exact import moved
from .reduction import Mean, Partial, Reduction, mean_of, merged
from .transforms import ClipNorm, UpdateContext, UpdateTransform, transforms_of

__all__ = [
    "ClipNorm",
    "Mean",
    "Partial",
    "Reduction",
    "UpdateContext",
    "UpdateTransform",
    "mean_of",
    "merged",
    "moved",
    "transforms_of",
]
