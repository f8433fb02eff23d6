"""The two networks of the papers in plain `torch.nn`, models by name, and the papers' modules over the fused operators.

The modules are in `factorization` and `inception_blocks` (Szegedy et al. 2016) and `xception_blocks` (Chollet 2017).
"""

from inception_kernels.models import factorization, inception_blocks, xception_blocks
from inception_kernels.models.inception_v3 import InceptionOutputs, InceptionV3, inception_v3
from inception_kernels.models.loading import load
from inception_kernels.models.xception import Xception, xception

__all__ = [
    "InceptionOutputs",
    "InceptionV3",
    "Xception",
    "factorization",
    "inception_blocks",
    "inception_v3",
    "load",
    "xception",
    "xception_blocks",
]
