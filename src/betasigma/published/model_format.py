"""What a format of published models is: how a file is recognised, asked and put into our terms."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from betasigma.errors import UserError, did_you_mean
from betasigma.published.weight_file import WeightFile

Settings = dict[str, Any]
"""Hyper-parameters under the names of the public code."""


@dataclass(frozen=True)
class PublishedModel:
    """A published model in the terms of this package.

    Attributes:
        config: nodes of a training run's config that say what the model is: ``network``,
            ``schedule``, ``preconditioning``, ``objective``, ``sampler``, each with ``_target_``,
            and of ``model`` what differs from ``betasigma.modules.DDPM``.
        weights: state dict of the network, complete.
        sides: height and width of the images.
        step: optimizer steps that the weights have seen; 0 where the file does not say.
        notes: lines for the user, of choices that the file left open.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    sides: tuple[int, int]
    step: int = 0
    notes: tuple[str, ...] = ()

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.weights["enter.weight"].shape[1], *self.sides


class ModelFormat(ABC):
    """One public code's way to write a model down.

    A subclass recognises its files by the names of their tensors and says what they compute. Shapes
    that fit are not enough for that: what a file does not say (attention heads, the noise schedule)
    comes from the table of published models or from the user, in the words of the public code.
    """

    name: ClassVar[str]
    """Of the format, for ``format=…``."""
    origin: ClassVar[str]
    """Page of the public code."""
    licence: ClassVar[str]
    """Licence of its published weights, or of the code where they have none of their own."""
    published: ClassVar[Mapping[str, Settings]] = {}
    """Settings of each published model, by the name of its file or folder; ``data`` may name its
    data set."""
    defaults: ClassVar[Settings] = {}
    """Settings that the files do not hold, with the public code's own defaults."""
    training: ClassVar[tuple[str, ...]] = ()
    """Flags of the public code that the model does not depend on: they are left aside."""

    @abstractmethod
    def detect(self, source: WeightFile) -> bool:
        """Whether the file is of this format, by what it holds."""

    @abstractmethod
    def convert(self, source: WeightFile, settings: Settings) -> PublishedModel:
        """Put the model into our terms.

        Args:
            source: of this format.
            settings: every key of ``defaults``.

        Raises:
            UserError: where it computes something that this package does not have.
        """

    def settings(self, source: WeightFile, name: str | None, flags: Settings | str) -> Settings:
        """Settings of a file: those of the published model, then those typed.

        Args:
            source: the file, whose name or folder may be that of a published model.
            name: of the published model, where the user gives it.
            flags: typed settings, as a mapping or as the words of a command line.

        Raises:
            UserError: for a name or a setting that the format does not have, and where nothing is
                said of what the file leaves open.
        """
        name = name or self.published_name(source)
        if name is not None and name not in self.published:
            raise UserError(f"published={name} is not known; {nearest(name, self.published)}")
        given = _words(flags) if isinstance(flags, str) else flags
        given = {key: value for key, value in given.items() if key not in self.training}
        for key, value in given.items():
            if key not in self.defaults:
                advice = nearest(str(key), self.defaults)
                raise UserError(
                    f"flags.{key}={value} is unknown to {self.name}, which {source.named} is read "
                    f"as (format=… says another); {advice}"
                )
        typed = {key: _like(key, value, self.defaults[key]) for key, value in given.items()}
        if self.defaults and name is None and not typed:
            raise UserError(
                f"{source.named} is of {self.name}, whose files do not hold all of its settings: "
                f"give published=… ({', '.join(self.published)}), or flags='--key value …' as its "
                f"authors ran it"
            )
        return {**self.defaults, **self.published.get(name or "", {}), **typed}

    def published_name(self, source: WeightFile) -> str | None:
        """The published model whose name the file or one of its folders has."""
        parts = source.path.absolute().with_suffix("").parts
        ends = range(len(parts), 0, -1)
        tails = ["/".join(parts[end - n : end]) for end in ends for n in (3, 2, 1) if n <= end]
        return next((tail for tail in tails if tail in self.published), None)


def integers(key: str, text: str) -> list[int]:
    """Integers separated by commas, with or without brackets: ``1,2,2,2`` or ``(1, 2, 2, 2)``."""
    words = text.strip("()[] ").rstrip(",").split(",")
    try:
        return [int(word) for word in words]
    except ValueError:
        raise UserError(f"flags.{key}={text} must be integers, separated by commas") from None


def nearest(word: str, known: Mapping[str, Any]) -> str:
    """Advice for an unknown word."""
    return did_you_mean(word, known) or f"known: {', '.join(known) or 'none'}"


def _words(text: str) -> Settings:
    """``--key value --other=value`` as a mapping."""
    found = re.findall(r"--(\w+)(?:=|\s+)(\S+)", text)
    if re.sub(r"--\w+(?:=|\s+)\S+", "", text).strip():
        raise UserError(f"flags={text} must be words like --num_heads 4 --noise_schedule cosine")
    return dict(found)


def _like(key: str, value: Any, default: Any) -> Any:
    """``value`` with the type of ``default``."""
    kind = type(default)
    try:
        return TypeAdapter(kind).validate_strings(str(value))  # as on a command line
    except ValidationError:
        raise UserError(
            f"flags.{key}={value} must be of type {kind.__name__}, as {default!r} is"
        ) from None
