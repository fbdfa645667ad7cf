"""SegFormer in pure PyTorch. Read config, encoder, decoder, model, in this order: they are the paper's Figure 2."""

from segformer import fullres
from segformer.config import VARIANTS, SegformerConfig
from segformer.metrics import ConfusionMatrix
from segformer.model import Segformer
from segformer.processor import ImageProcessor
from segformer.segmenter import Segmenter
from segformer.views import Views

__all__ = [
    "VARIANTS",
    "ConfusionMatrix",
    "ImageProcessor",
    "Segformer",
    "SegformerConfig",
    "Segmenter",
    "Views",
    "fullres",
]
