"""What is measured: sums over examples that add exactly, and the numbers that follow from them."""

from heliotrope.metrics.base import (
    Batch,
    Cell,
    Direction,
    GroupedMetrics,
    Metric,
    Metrics,
    MetricSet,
    MetricWithPanels,
    Sums,
)
from heliotrope.metrics.classification import Accuracy, CalibrationError, Confusion
from heliotrope.metrics.curves import ScoreCurves
from heliotrope.metrics.loss import Loss, TokenLoss
from heliotrope.metrics.ranking import HitRate, Ndcg, Recall
from heliotrope.metrics.regression import PredictionHistogram, RegressionErrors

__all__ = [
    "Accuracy",
    "Batch",
    "CalibrationError",
    "Cell",
    "Confusion",
    "Direction",
    "GroupedMetrics",
    "HitRate",
    "Loss",
    "Metric",
    "MetricSet",
    "MetricWithPanels",
    "Metrics",
    "Ndcg",
    "PredictionHistogram",
    "Recall",
    "RegressionErrors",
    "ScoreCurves",
    "Sums",
    "TokenLoss",
]
