"""Published models: whose code wrote a file of weights, and what it is in the terms of this
package.

A :class:`~betasigma.published.model_format.ModelFormat` knows one public code. ``FORMATS`` lists
them; the first that recognises a file reads it.
"""

from __future__ import annotations

from betasigma.published.diffusers_unet import DiffusersUNet
from betasigma.published.model_format import ModelFormat

FORMATS: tuple[ModelFormat, ...] = (DiffusersUNet(),)
"""Every format that is read."""
