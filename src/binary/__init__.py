"""The method: sign functions with surrogate gradients, the noise adaptation module, quantizers and binary layers."""

from .estimators import create_estimator, sign
from .kernels import chosen_path
from .layers import Binarization, BinaryConv2d, BinaryDense, BinaryLayer, SharedSlopePReLU, SlopeThenNorm
from .noise_adaptation import AnnealedNoise, NoiseAdaptation
from .quantizers import DoReFaWeight, LibraWeight, SignActivation, SignWeight, XnorWeight

__all__ = [
    "SignActivation",
    "AnnealedNoise",
    "Binarization",
    "BinaryConv2d",
    "BinaryDense",
    "BinaryLayer",
    "DoReFaWeight",
    "LibraWeight",
    "NoiseAdaptation",
    "SharedSlopePReLU",
    "SlopeThenNorm",
    "SignWeight",
    "XnorWeight",
    "chosen_path",
    "create_estimator",
    "sign",
]
