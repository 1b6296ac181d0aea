"""What data goes through before a model sees it, fitted by sums that add over clients.

A source names the steps that its columns need. `Statistics` of the training rows are what these
must know, `Preparation.of` fits them, `Preparation.apply` makes the examples of any split. The
statistics of all rows are the sum of those of any groups of rows, to the digit, so that clients
can fit one together and none shows its rows.
"""

from heliotrope.data.preparation.arrays import Arrays, TargetArrays
from heliotrope.data.preparation.base import (
    Fitted,
    Groups,
    Kind,
    Preparation,
    Statistics,
    Step,
)
from heliotrope.data.preparation.categories import Categories
from heliotrope.data.preparation.numbers import Numbers
from heliotrope.data.preparation.pixels import Pixels
from heliotrope.data.preparation.saved import from_json
from heliotrope.data.preparation.targets import Ids, Labels, Target
from heliotrope.data.preparation.text import Characters, Words
from heliotrope.data.preparation.tokens import Tokens

__all__ = [
    "Arrays",
    "Categories",
    "Characters",
    "Fitted",
    "Groups",
    "Ids",
    "Kind",
    "Labels",
    "Numbers",
    "Pixels",
    "Preparation",
    "Statistics",
    "Step",
    "Target",
    "TargetArrays",
    "Tokens",
    "Words",
    "from_json",
]
