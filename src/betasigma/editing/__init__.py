"""Editing: what a trained model does with images that there are already."""

from betasigma.editing.known import Colourisation, Conditioned, Inpainting, complete, grey, outside
from betasigma.editing.latents import Interpolation, Inversion, decode, encode, interpolate, slerp
from betasigma.editing.request import Edit, Edited, Request
from betasigma.editing.variation import Variation, vary

__all__ = [
    "Colourisation",
    "Conditioned",
    "Edit",
    "Edited",
    "Inpainting",
    "Interpolation",
    "Inversion",
    "Request",
    "Variation",
    "complete",
    "decode",
    "encode",
    "grey",
    "interpolate",
    "outside",
    "slerp",
    "vary",
]
