"""The method: sign functions with surrogate gradients, the noise adaptation module, quantizers and binary layers."""

from src.binary.estimators import create_estimator, sign
from src.binary.layers import Binarization, BinaryConv2d, SharedSlopePReLU
from src.binary.noise_adaptation import AnnealedNoise, NoiseAdaptation
from src.binary.quantizers import ActivationSign, DoReFaWeight

__all__ = [
    "ActivationSign",
    "AnnealedNoise",
    "Binarization",
    "BinaryConv2d",
    "DoReFaWeight",
    "NoiseAdaptation",
    "SharedSlopePReLU",
    "create_estimator",
    "sign",
]
