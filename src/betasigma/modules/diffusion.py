"""What DDPM and NCSN share as LightningModules: everything except their names; and ground truth
in a model's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from betasigma import oracles
from betasigma.denoiser import Denoiser
from betasigma.modules.averaging import averaged_copy, ramped_decay, update_average, whole
from betasigma.modules.finite import FiniteSteps
from betasigma.modules.learning_rate import LearningRate, constant
from betasigma.modules.training_means import FiniteMean, MeanError
from betasigma.networks.compiled import compile_in_place
from betasigma.objectives import Objective
from betasigma.objectives.error_curve import GRID, covered, denoising_error, to_schedule_log_snr
from betasigma.options import training
from betasigma.oracles import ExactDenoiser
from betasigma.randomness import Stream, seed_global
from betasigma.runs.record import current_name

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]

WINDOW = "window"
"""Key of a checkpoint with what was counted since the last value of the log."""

WAITING = "waiting"
"""What was seen and not yet added up, in it."""


class MeasuredModule(LightningModule):
    """What is validated, sampled and evaluated.

    Attributes:
        average: the denoiser that counts: averaged weights, or ground truth.
    """

    average: Denoiser | ExactDenoiser

    @cached_property
    def measured_at(self) -> tuple[float, ...]:
        """Points of the grid of log-SNR (of data in [−1, 1]) that the schedule covers."""
        schedule, value_range = self.average.schedule, self.average.value_range
        return tuple(at for at in GRID if covered(schedule, to_schedule_log_snr(at, value_range)))

    @property
    def error_name(self) -> str:
        """What the mean of the denoising error is called: over a part of the grid by its ends."""
        if self.measured_at == GRID:
            return training.DENOISING_ERROR
        first, last = self.measured_at[0], self.measured_at[-1]
        return f"{training.DENOISING_ERROR}/mean_log_snr_{first:+.0f}_to_{last:+.0f}"

    @property
    def monitor(self) -> str:
        """Metric that is least where the model is best; comparable between models of one name.

        Where the schedule covers no point of the grid (one level) there is only the objective.
        """
        return f"val/{self.error_name}" if self.measured_at else training.VALIDATION_OBJECTIVE

    def log_denoising_error(self, batch: dict[str, Any], rng: Stream) -> None:
        """Log ‖ε − ε̂‖²/d at each log-SNR of the grid that the schedule covers, and their mean under
        a name that tells a mean over the whole grid from one over a part of it.

        Args:
            batch: ``x``, clean data in the model's value range, and ``label`` where there are
                classes.
            rng: the numbers of its examples.
        """
        x, y = batch["x"], self.labels(batch)
        errors = []
        for log_snr in self.measured_at:
            with self.average.between_levels("interpolate"):
                error = denoising_error(self.average, x, y, log_snr, rng).mean()
            self.log_mean(f"val{training.AT_LOG_SNR}{log_snr:+.0f}", error, len(x))
            errors.append(error)
        if errors:
            self.log_mean(self.monitor, torch.stack(errors).mean(), len(x))

    def labels(self, batch: dict[str, Any]) -> Tensor | None:
        """Class labels of a batch, where the model knows classes."""
        return batch.get("label") if self.average.num_classes else None

    def log_mean(self, name: str, value: Tensor, size: int) -> None:
        """Log the mean over the validation of a mean over ``size`` examples."""
        self.log(name, value, on_epoch=True, logger=False, batch_size=size, sync_dist=True)


def match_memory_format(optimizer: Optimizer) -> None:
    """Give what an optimizer keeps of each parameter the parameter's memory format.

    A fused kernel takes both as they lie in memory. A checkpoint has the format of the machine that
    wrote it, where the network may have had its channels last.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class DiffusionModule(MeasuredModule):
    """Wires an objective and a denoiser to the Trainer.

    A training batch is a dict with ``x`` (clean data in the model's value range), ``index`` (global
    index of each example within the step, int64 of NumPy's), ``step`` and, where there are classes,
    ``label``. All randomness of a step is a function of (seed, step, index).

    Args:
        denoiser: the model to train.
        objective: its loss.
        optimizer: makes the optimizer from the parameters.
        seed: of noise, times and dropout.
        warmup: steps over which the learning rate rises linearly to the optimizer's.
        lr_schedule: makes the schedule of the learning rate, warm-up included, from the optimizer
            and ``warmup``.
        decay: of the averaged weights; 0 for none.
        compile: run the network through torch.compile, ``"cuda_graphs"`` with CUDA graphs.
    """

    family = ""
    average: Denoiser

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        optimizer: OptimizerFactory,
        seed: int = 0,
        warmup: int = training.TrainingOptions.DEFAULTS["warmup"],
        lr_schedule: LearningRate = constant,
        decay: float = training.AveragingOptions.DEFAULTS["decay"],
        compile: bool | Literal["cuda_graphs"] = False,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.average = averaged_copy(denoiser)
        self.objective = objective
        self._make_optimizer = optimizer
        self._seed, self._warmup, self._decay = seed, warmup, decay
        self._lr_schedule = lr_schedule
        if compile:
            for model in (denoiser, self.average):
                compile_in_place(model.network, cuda_graphs=compile == "cuda_graphs")
        self.mean_objective, self.mean_norm = FiniteMean(), FiniteMean()
        self.mean_error = MeanError(denoiser.schedule, denoiser.value_range, self.measured_at)
        self.finite_steps = FiniteSteps()

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.denoiser.parameters())
        optimizer.register_load_state_dict_post_hook(match_memory_format)
        schedule = self._lr_schedule(optimizer, self._warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        step, index = batch["step"], batch["index"]
        # the first index names the micro-batch and the rank that has it
        seed_global("dropout", self._seed, step, int(index[0]), device=self.device)
        rng = Stream("train", self._seed, step, indices=index, device=self.device)
        terms = self.objective.loss(self.denoiser, batch["x"], self.labels(batch), rng)
        self.mean_objective.see(terms.per_sample)
        if terms.error is not None:
            self.mean_error.see(terms.error, terms.t)
        self.finite_steps.see(terms.loss, terms.per_sample, terms.t, int(index[0]))
        return terms.loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient, and have a step that is not finite skipped."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        of_all = whole(norm)
        self.mean_norm.see(of_all)
        several = self.trainer.world_size > 1
        self.finite_steps.decide(optimizer, of_all, self.trainer.global_step + 1, several)
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # the Trainer would keep the gradients through the next forward pass, where memory peaks
        self.zero_grad()
        decay = ramped_decay(self._decay, self.trainer.global_step)
        update_average(self.average, self.denoiser, decay)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Objective and denoising error of the averaged weights, with the same noise at every
        validation.
        """
        x, y, index = batch["x"], self.labels(batch), batch["index"]
        rng = Stream("validation", indices=index, device=self.device)
        loss = self.objective.loss(self.average, x, y, rng).loss
        self.log_mean(training.VALIDATION_OBJECTIVE, loss, len(x))
        self.log_denoising_error(batch, rng)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is counted between two values of the log; all ranks call it together."""
        window: dict[str, Any] = self.finite_steps.state_dict()
        for name, metric in self._means.items():
            window[name] = self._of_all_ranks(metric.sums)
            window[f"{name}/{WAITING}"] = [self._of_all_ranks(part) for part in metric.packed()]
        checkpoint[WINDOW] = window

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the counters up again; early checkpoints lack them."""
        states = checkpoint.get("callbacks", {})  # named by what they watch
        checkpoint["callbacks"] = {current_name(name): state for name, state in states.items()}
        saved = checkpoint.get(WINDOW)
        if saved is None:
            return
        self.finite_steps.load_state_dict(saved)
        if "loss" in saved:  # of an earlier version, by noise level
            saved = {"objective": saved["loss"].sum(-1)}
        for name, metric in self._means.items():
            if name in saved:
                metric.sums = self._own_share(saved[name]).to(metric.sums.device)
            waiting = saved.get(f"{name}/{WAITING}")
            if waiting and len(waiting[0]) == self.trainer.world_size:
                metric.unpack([part[self.global_rank] for part in waiting])
            elif waiting and self.global_rank == 0:
                metric.unpack([part.flatten() for part in waiting])
                metric.add_up()  # all ranks must have as much waiting

    def _of_all_ranks(self, own: Tensor) -> Tensor:
        """What each rank has, ``(ranks, …)`` on the CPU; all ranks call it together."""
        several = self.trainer.world_size > 1
        ranks = self.all_gather(own.to(self.device) if several else own)
        assert isinstance(ranks, Tensor)
        return ranks.reshape(-1, *own.shape).cpu()

    def _own_share(self, sums: Tensor) -> Tensor:
        """This rank's part of the sums of all; the first has all, if their number has changed."""
        if len(sums) == self.trainer.world_size:
            return sums[self.global_rank]
        return sums.sum(0) if self.global_rank == 0 else torch.zeros_like(sums[0])

    @property
    def _means(self) -> dict[str, FiniteMean | MeanError]:
        return {
            "objective": self.mean_objective,
            "gradient_norm": self.mean_norm,
            "error": self.mean_error,
        }

    def pop_training_metrics(self) -> dict[str, float]:
        """Means since the last call: of the objective, of the gradient's norm before it is clipped,
        and of the denoising error by noise level. The last goes on until it has had examples of all
        levels.

        To be called by all ranks together.
        """
        for metric in self._means.values():
            metric.add_up()
        metrics = self.training_metrics()
        self.mean_objective.reset()
        self.mean_norm.reset()
        if any(name.startswith(training.TRAIN_ERROR) for name in metrics):
            self.mean_error.reset()
        return metrics

    def recent_objective(self) -> float:
        """Mean of what is minimised since the last call of :meth:`pop_training_metrics`, of this
        rank's examples alone. It waits for the device.
        """
        total, examples = self.mean_objective.added_up().sums
        return float(total / examples)

    def training_metrics(self) -> dict[str, float]:
        """The same, without beginning anew; all ranks call it together."""
        objective, norm = self.mean_objective.added_up(), self.mean_norm.added_up()
        if not objective.update_called:
            return {}
        metrics: dict[str, float] = {training.TRAIN_OBJECTIVE: objective.compute()}
        if norm.update_called:
            metrics[training.GRADIENT_NORM] = norm.compute()
        error = self.mean_error.added_up()
        errors = error.compute() if error.update_called else {}
        if errors:
            mean = sum(errors[log_snr] for log_snr in self.measured_at) / len(self.measured_at)
            metrics[f"train/{self.error_name}"] = mean
        return metrics | {
            f"train{training.AT_LOG_SNR}{log_snr:+.0f}": error for log_snr, error in errors.items()
        }


class Oracle(MeasuredModule):
    """An oracle as the Trainer knows it: it is validated, sampled and kept, and never trained.

    Args:
        denoiser: the oracle. Its data or parameters are not weights: a checkpoint has none.
    """

    family = "oracle"

    def __init__(self, denoiser: oracles.ExactDenoiser) -> None:
        super().__init__()
        self.average = denoiser

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Denoising error, with the same noise as a trained model's."""
        rng = Stream("validation", indices=batch["index"], device=self.device)
        self.log_denoising_error(batch, rng)
