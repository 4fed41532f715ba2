"""Cost models: feature matrices in, predicted scores out. Know neither TVM nor torch."""

from calumma.cost_model.committee import Committee, ScaledCommittee
from calumma.cost_model.gaussian import GaussianProcess, GaussianSettings
from calumma.cost_model.scoring import ConstantModel, CostModel
from calumma.cost_model.trees import GradientBoostedTrees, SharedTrees, TreeSettings
from calumma.cost_model.xgb_rank import RankedTrees, RankedTreesSettings

__all__ = [
    "Committee",
    "ConstantModel",
    "CostModel",
    "GaussianProcess",
    "GaussianSettings",
    "GradientBoostedTrees",
    "RankedTrees",
    "RankedTreesSettings",
    "ScaledCommittee",
    "SharedTrees",
    "TreeSettings",
]
