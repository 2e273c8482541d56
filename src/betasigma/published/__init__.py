"""Published models: whose code wrote a file of weights, and what it is in the terms of this
package.

A :class:`~betasigma.published.model_format.ModelFormat` knows one public code. ``FORMATS`` lists
them; the first that recognises a file reads it.
"""

from __future__ import annotations

from betasigma.published.diffusers_unet import DiffusersUNet
from betasigma.published.edm_weights import EDMWeights
from betasigma.published.model_format import ModelFormat
from betasigma.published.ncsn_checkpoints import NCSNCheckpoint, NCSNv2Checkpoint
from betasigma.published.openai_unet import GuidedDiffusion, ImprovedDiffusion
from betasigma.published.pytorch_diffusion import PytorchDiffusion
from betasigma.published.score_sde import ScoreSdeDDPM
from betasigma.published.score_sde_ncsnpp import ScoreSdeNCSNpp

FORMATS: tuple[ModelFormat, ...] = (
    DiffusersUNet(),
    PytorchDiffusion(),
    ScoreSdeDDPM(),
    ScoreSdeNCSNpp(),
    NCSNCheckpoint(),
    NCSNv2Checkpoint(),
    EDMWeights(),
    ImprovedDiffusion(),
    GuidedDiffusion(),
)
"""Every format that is read."""
