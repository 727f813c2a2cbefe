"""Is a difference real? Intervals over images and seeds, corrections for many tests. Needs numpy only."""

from nsft_exp.statistics.bootstrap import Bootstrap, Difference, ScoredItems
from nsft_exp.statistics.interval import holm, student_interval
from nsft_exp.statistics.ranking import auc, rank_metrics

__all__ = ["Bootstrap", "Difference", "ScoredItems", "auc", "holm", "rank_metrics", "student_interval"]
