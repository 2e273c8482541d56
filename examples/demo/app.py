"""A page that draws from any run: python examples/demo/app.py outputs/RUN"""

import sys
from pathlib import Path

import gradio as gr
import torch

import betasigma
from betasigma import DDIM, Heun
from betasigma.data.pixels import to_uint8


def demo(run: str) -> gr.Interface:
    """The page of a run, a checkpoint or an exported model: seed, number of samples, sampler and
    steps in, images out."""
    denoiser, own = betasigma.load(run)
    samplers = {"as trained": own, "DDIM": DDIM(), "Heun": Heun()}

    def draw(seed: float, n: float, sampler: str, steps: float) -> list:
        chosen = samplers[sampler]
        if chosen is not own:
            chosen.steps = int(steps)
        y = torch.arange(int(n)) % denoiser.num_classes if denoiser.num_classes else None
        x = chosen.sample(denoiser, int(n), seed=int(seed), y=y).x
        large = torch.nn.functional.interpolate(x, scale_factor=max(1, 128 // x.shape[-1]))
        return [*to_uint8(large, denoiser.value_range).permute(0, 2, 3, 1).squeeze(-1).numpy()]

    count = gr.Slider(1, 64, 16, step=1, label="samples")
    which = gr.Radio([*samplers], value="DDIM", label="sampler")
    steps = gr.Slider(1, 200, 20, step=1, label="steps (of DDIM and Heun)")
    inputs = [gr.Number(0, label="seed", precision=0), count, which, steps]
    shown = gr.Gallery(columns=4, height="auto", show_label=False)
    return gr.Interface(draw, inputs, shown, title=Path(run).name, flagging_mode="never")


if __name__ == "__main__":
    demo(sys.argv[1]).launch()
