"""The two networks of the papers in plain `torch.nn`, and models by name."""

from inception_kernels.models.inception_v3 import InceptionOutputs, InceptionV3, inception_v3
from inception_kernels.models.loading import load
from inception_kernels.models.xception import Xception, xception

__all__ = ["InceptionOutputs", "InceptionV3", "Xception", "inception_v3", "load", "xception"]
