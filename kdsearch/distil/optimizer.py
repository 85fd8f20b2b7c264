"""A recipe's optimiser, its learning rate at each step, and the weights that represent the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kdsearch import networks
from kdsearch.networks import cpu_layers
from kdsearch.spec import Recipe

ONE_CYCLE_START = 0.04  # share of the peak rate at the first step
ONE_CYCLE_WARM_UP = 0.2  # share of the steps until the peak rate
AVERAGED_AN_EPOCH = 16  # updates of the average per epoch: one per step would gain nothing and cost a tenth of the time
NORM_BATCHES = 20  # batches from which batch norm's statistics are recomputed


class _InMemoryOrder(Optimizer):
    """A fused optimiser that sees weights laid out channels last, for the time of a step, in the order of their memory.

    On a CPU torch's kernels (2.14.1) copy other tensors first, which takes longer than the step itself.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        turned: list[Tensor] = []
        try:
            for group in self.param_groups:
                for weight in filter(_lies_otherwise, group["params"]):
                    self._turn(weight, (0, 2, 3, 1))
                    turned.append(weight)
            super().step()
        finally:
            for weight in turned:
                self._turn(weight, (0, 3, 1, 2))
        return loss

    def _turn(self, weight: Tensor, order: tuple[int, ...]) -> None:
        gradient, shape = weight.grad, weight.shape
        weight.grad = None  # it must have the weight's shape
        weight.data, state = weight.data.permute(order), self.state[weight]
        weight.grad = None if gradient is None else gradient.permute(order)
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == shape:
                state[name] = value.permute(order)


def _lies_otherwise(weight: Tensor) -> bool:
    """Return whether a weight that has a gradient lies on a CPU, and channels last."""
    if weight.grad is None or weight.ndim != 4 or weight.device.type != "cpu":
        return False
    return cpu_layers.lie_last(weight)


class _Sgd(_InMemoryOrder, torch.optim.SGD):
    pass


class _Adam(_InMemoryOrder, torch.optim.Adam):
    pass


def make_optimizer(
    network: nn.Module, recipe: Recipe, batch_size: int, companion: nn.Module | None = None
) -> Optimizer:
    """Return the recipe's optimiser for a batch size.

    Adam and SGD are fused (one kernel for all parameters), and keep the rate in a tensor on their device, which a step
    captured in a CUDA graph reads anew. Schedule-free SGD is its authors' implementation.
    """
    parameters = [*network.parameters(), *(companion.parameters() if companion is not None else ())]
    device = parameters[0].device
    rate = recipe.rate_for(batch_size)
    if recipe.optimizer == "schedulefree":
        from schedulefree import SGDScheduleFree

        return SGDScheduleFree(parameters, lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)  # type: ignore[no-any-return]
    made: Optimizer
    if recipe.optimizer == "adam":
        made = _Adam(
            parameters, lr=rate, eps=recipe.epsilon, weight_decay=recipe.weight_decay, fused=True,
            capturable=device.type == "cuda",  # not allowed elsewhere
        )  # fmt: skip
    else:
        made = _Sgd(
            parameters, lr=rate, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay,
            fused=True,
        )  # fmt: skip
    for group in made.param_groups:
        group["lr"] = torch.tensor(rate, device=device)
    return made


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state from `Optimizer.state_dict`, with the memory layout of the parameters.

    Fused kernels access a parameter and its state by address, in their order in memory.

    Raises:
        ValueError: the state belongs to other parameters; nothing was changed.
    """
    names = [set(group) for group in optimizer.param_groups]
    if [set(group) for group in state["param_groups"]] != names:
        raise ValueError("the state must be of this optimizer")
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def schedule(recipe: Recipe, step: int, total: int) -> float:
    """Return the share of the learning rate at a step, counted from 0.

    One-cycle: linear from 4 % of the peak rate up to it over the first fifth of the steps, then linear to 0 (Smith and
    Topin, arXiv 1708.07120, with straight lines).
    """
    if recipe.schedule == "constant":
        return 1.0
    top = ONE_CYCLE_WARM_UP * total
    if step < top:
        return ONE_CYCLE_START + (1.0 - ONE_CYCLE_START) * step / top
    return (total - step) / (total - top)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the rate of the next step in place, without waiting for the device."""
    for group in optimizer.param_groups:
        group["lr"].fill_(rate)


class Shown:
    """The weights that represent a training at the end of an epoch: by default the current ones."""

    def step(self) -> None:
        """Record that a step was taken."""

    def show(self) -> None:
        """Put the weights that represent the training into the network."""

    def hide(self) -> None:
        """Restore the weights with which the training continues."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state beside the network and the optimiser."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state from `state_dict`, after the network has loaded its weights of that moment."""


class Averaged(Shown):
    """Polynomial-decay averaging of the weights (Shamir and Zhang, arXiv 1212.1824, section 4).

    With t weights taken in, the average is a_t = (1 - c) a_{t-1} + c w_t with c = (p + 1) / (t + p): for p = 0 their
    mean, for a larger p about the mean of the last 1 / (p + 1) of the training so far. So each epoch's average is as
    good as if the training had been planned to end there. Batch norm's statistics are averaged, too.

    Args:
        network: whose weights are averaged.
        power: p, at least 0.
        every: steps between two updates of the average.
    """

    def __init__(self, network: nn.Module, power: float, every: int) -> None:
        self._live = [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]
        self._average = [tensor.detach().clone() for tensor in self._live]
        self._power, self._every = power, every
        self._steps = self._taken = 0
        self._shown = False

    @torch.no_grad()
    def step(self) -> None:
        self._steps += 1
        if self._steps % self._every == 0:
            self._taken += 1
            torch._foreach_lerp_(self._average, self._live, (self._power + 1) / (self._taken + self._power))

    def show(self) -> None:
        if not self._shown:
            self._swap()

    def hide(self) -> None:
        if self._shown:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """Return the average or, while the network holds it, the training's weights; and the number of updates."""
        return {"average": self._average, "steps": self._steps, "taken": self._taken, "shown": self._shown}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self._average, state["average"])
        self._steps, self._taken, self._shown = state["steps"], state["taken"], state["shown"]

    @torch.no_grad()
    def _swap(self) -> None:
        """Swap in place, because a captured step reads and writes these very tensors."""
        held = [tensor.clone() for tensor in self._live]
        torch._foreach_copy_(self._live, self._average)
        torch._foreach_copy_(self._average, held)
        self._shown = not self._shown


class ScheduleFree(Shown):
    """The averaged weights of schedule-free SGD (Defazio et al., arXiv 2405.15682).

    No training step has seen these weights, so batch norm's statistics are recomputed from some batches.
    """

    def __init__(self, optimizer: Optimizer, network: nn.Module, batches: Callable[[int], list[Tensor]]) -> None:
        self._optimizer, self._network, self._batches = optimizer, network, batches
        self._optimizer.train()  # type: ignore[attr-defined]

    def show(self) -> None:
        self._optimizer.eval()  # type: ignore[attr-defined]
        if networks.has_layer(self._network, nn.modules.batchnorm._BatchNorm):
            torch.optim.swa_utils.update_bn(self._batches(NORM_BATCHES), self._network)

    def hide(self) -> None:
        self._optimizer.train()  # type: ignore[attr-defined]


def shown_weights(
    optimizer: Optimizer, network: nn.Module, recipe: Recipe, steps: int, batches: Callable[[int], list[Tensor]]
) -> Shown:
    """Return the weights that represent a training at an epoch's end: `averaging` and schedule-free SGD change them.

    Training takes so many steps per epoch; `batches` returns a given number of input batches.
    """
    if recipe.optimizer == "schedulefree":
        return ScheduleFree(optimizer, network, batches)
    if recipe.averaging is not None:
        return Averaged(network, recipe.averaging, max(1, steps // AVERAGED_AN_EPOCH))
    return Shown()
