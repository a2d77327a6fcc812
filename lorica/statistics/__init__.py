"""What is remembered of classes in place of their images, and the classifiers computed from it.

    ClassMeans      the mean feature of each class; the nearest by cosine
    Discriminant    the means and one covariance for all classes; linear discriminant analysis
    RidgeHead       sums of products; ridge regression to one-hot labels
    Gaussians       each class as a mixture, to draw features from
    AlignedHead     each class as one Gaussian, and a linear head for a stage of training on draws (`PseudoFeatures`)

The first three add up: neither the order of the samples nor their division into tasks changes a result, but for
rounding in float64. Two of a kind become that of the samples of both (`join`).
A class can be taken out of all of them again (`forget`): of sums over all classes by what each has added
(`lorica.parts`). Where features have moved since, all but mixtures can be moved along by an affine map (`affine_drift`
fits one).
"""

from lorica.statistics.aligned import TEMPERATURE, AlignedHead
from lorica.statistics.class_means import ClassMeans
from lorica.statistics.discriminant import SHRINKAGE, Discriminant
from lorica.statistics.drift import DAMPING, affine_drift
from lorica.statistics.gaussians import JITTER, Gaussians, PseudoFeatures, clusters
from lorica.statistics.ridge import FITTED, RIDGES, RidgeHead, choose_ridge, ridge_errors
from lorica.statistics.sums import CANCELLED, NO_SUMS

__all__ = [
    "CANCELLED",
    "DAMPING",
    "FITTED",
    "JITTER",
    "NO_SUMS",
    "RIDGES",
    "SHRINKAGE",
    "TEMPERATURE",
    "AlignedHead",
    "ClassMeans",
    "Discriminant",
    "Gaussians",
    "PseudoFeatures",
    "RidgeHead",
    "affine_drift",
    "choose_ridge",
    "clusters",
    "ridge_errors",
]
