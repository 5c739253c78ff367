"""The method: sign functions with surrogate gradients, the noise adaptation module, quantizers and binary layers."""

from src.binary.estimators import create_estimator, sign
from src.binary.layers import Binarization, BinaryConv2d, BinaryDense, BinaryLayer, SharedSlopePReLU
from src.binary.noise_adaptation import AnnealedNoise, NoiseAdaptation
from src.binary.quantizers import ActivationSign, DoReFaWeight, LibraWeight, SignWeight, XnorWeight

__all__ = [
    "ActivationSign",
    "AnnealedNoise",
    "Binarization",
    "BinaryConv2d",
    "BinaryDense",
    "BinaryLayer",
    "DoReFaWeight",
    "LibraWeight",
    "NoiseAdaptation",
    "SharedSlopePReLU",
    "SignWeight",
    "XnorWeight",
    "create_estimator",
    "sign",
]
