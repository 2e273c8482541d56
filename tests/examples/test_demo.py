"""The page of a run: it draws what the run draws, and answers over HTTP."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT, TINY, launch
from PIL import Image

import betasigma
from betasigma.data.pixels import to_uint8
from betasigma.samplers import DDIM

FILE = ROOT / "examples" / "demo" / "app.py"


@pytest.mark.slow
def test_the_page_draws(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    client = pytest.importorskip("gradio_client")
    spec = importlib.util.spec_from_file_location("demo_app", FILE)
    assert spec is not None
    assert spec.loader is not None
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    outcome = launch("train", *TINY, "network.num_classes=10")
    page = app.demo(str(outcome.run))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page.launch(prevent_thread_lock=True, server_port=port, quiet=True)
    try:
        asked = client.Client(f"http://127.0.0.1:{port}", verbose=False)
        found = asked.predict(3, 5, "DDIM", 4, api_name="/draw")
    finally:
        page.close()
    assert len(found) == 5
    denoiser, _ = betasigma.load(outcome.run)
    x = DDIM(steps=4).sample(denoiser, 5, seed=3, y=torch.arange(5)).x
    ours = to_uint8(x, denoiser.value_range).repeat_interleave(16, 2).repeat_interleave(16, 3)
    for image, expected in zip(found, ours, strict=True):
        shown = np.asarray(Image.open(image["image"]).convert("L"))
        assert shown.shape == (128, 128)
        assert np.abs(shown.astype(int) - expected[0].numpy()).max() <= 8  # webp loses a little


def test_it_stays_short() -> None:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 30
