"""What a batch means: the loss that training minimises and the metrics that evaluation adds up."""

from heliotrope.tasks.base import DataFacts, Task
from heliotrope.tasks.choice import task_of
from heliotrope.tasks.classification import Classification
from heliotrope.tasks.contrastive import Contrastive
from heliotrope.tasks.next_token import NextToken
from heliotrope.tasks.rating import Rating
from heliotrope.tasks.regression import Regression
from heliotrope.tasks.weights import example_weights

__all__ = [
    "Classification",
    "Contrastive",
    "DataFacts",
    "NextToken",
    "Rating",
    "Regression",
    "Task",
    "example_weights",
    "task_of",
]
