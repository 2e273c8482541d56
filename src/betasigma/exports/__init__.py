"""Formats that a trained model is written in, for other tools."""
