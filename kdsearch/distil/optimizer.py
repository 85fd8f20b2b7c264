"""A recipe's optimiser, its rate at each step, and the weights that stand for the training at an epoch's end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kdsearch.spec import Recipe

ONE_CYCLE_START = 0.04  # share of the top rate at the first step
ONE_CYCLE_WARM_UP = 0.2  # share of the steps until the top rate
AVERAGED_AN_EPOCH = 16  # times that the average takes in the weights: each step would gain nothing and cost a tenth
NORM_BATCHES = 20  # that batch norm sees anew where it has to


def make_optimizer(
    network: nn.Module, recipe: Recipe, batch_size: int, companion: nn.Module | None = None
) -> Optimizer:
    """The recipe's optimiser for batches of a size.

    Adam and SGD are fused, one kernel for all parameters, with the rate in a tensor on their device: a step that was
    captured in a CUDA graph reads it anew. Schedule-free SGD is its authors' own.
    """
    parameters = [*network.parameters(), *(companion.parameters() if companion is not None else ())]
    rate = recipe.rate_for(batch_size)
    if recipe.optimizer == "schedulefree":
        from schedulefree import SGDScheduleFree

        return SGDScheduleFree(parameters, lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)  # type: ignore[no-any-return]
    made: Optimizer
    device = parameters[0].device
    if recipe.optimizer == "adam":
        capturable = device.type == "cuda"  # elsewhere it is refused
        made = torch.optim.Adam(
            parameters, lr=rate, eps=recipe.epsilon, weight_decay=recipe.weight_decay, fused=True, capturable=capturable
        )
    else:
        made = torch.optim.SGD(
            parameters,
            lr=rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
    for group in made.param_groups:
        group["lr"] = torch.tensor(rate, device=device)
    return made


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads a state of `Optimizer.state_dict`, laid out in memory as the parameters are.

    Fused kernels go through a parameter and its state by address, in the order in which they lie in memory.

    Raises:
        ValueError: it is of other parameters; nothing was changed.
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
    """The share of the learning rate that a step uses, counted from 0.

    One-cycle: linear from 4 % of the top rate to it over the first fifth, then linear to 0 (Smith and Topin, arXiv
    1708.07120, with straight lines).
    """
    if recipe.schedule == "constant":
        return 1.0
    top = ONE_CYCLE_WARM_UP * total
    if step < top:
        return ONE_CYCLE_START + (1.0 - ONE_CYCLE_START) * step / top
    return (total - step) / (total - top)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the rate of the next step, in place: no host waits for the device."""
    for group in optimizer.param_groups:
        group["lr"].fill_(rate)


class Shown:
    """The weights that stand for a training at the end of an epoch: by default, those it has.

    `show` puts them into the network, `hide` puts back those that the training goes on with.
    """

    def step(self) -> None:
        """A step was taken."""

    def show(self) -> None:
        """The network holds the weights that stand for the training."""

    def hide(self) -> None:
        """The network holds the weights that the training goes on with."""

    def state_dict(self) -> dict[str, Any]:
        """What it holds beside the network and the optimiser."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state of `state_dict`; the network has got its weights of that moment already."""


class Averaged(Shown):
    """Polynomial-decay averaging of the weights (Shamir and Zhang, arXiv 1212.1824, section 4).

    Of t weights taken in, the average is a_t = (1 - c) a_{t-1} + c w_t with c = (p + 1) / (t + p): at p = 0 their mean,
    and at a larger p about that of the last 1 / (p + 1) of the training, however long it has been. So each epoch's
    average is worth as much as if the training had been planned to end there. Batch norm's statistics are averaged too.

    Args:
        network: whose weights are averaged.
        power: p, at least 0.
        every: steps between two that are taken in.
    """

    def __init__(self, network: nn.Module, power: float, every: int) -> None:
        self._live = [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]
        self._average = [tensor.detach().clone() for tensor in self._live]
        self._power, self._every = power, every
        self._steps = self._taken = 0
        self._shown = False

    @torch.no_grad()
    def step(self) -> None:
        """Takes in the weights, every so many steps."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._taken += 1
            torch._foreach_lerp_(self._average, self._live, (self._power + 1) / (self._taken + self._power))

    def show(self) -> None:
        """Swaps the average into the network."""
        if not self._shown:
            self._swap()

    def hide(self) -> None:
        """Swaps the weights of the training back."""
        if self._shown:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """The average or, where the network holds that, the weights of the training; and how many were taken in."""
        return {"average": self._average, "steps": self._steps, "taken": self._taken, "shown": self._shown}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state of `state_dict`, in place."""
        torch._foreach_copy_(self._average, state["average"])
        self._steps, self._taken, self._shown = state["steps"], state["taken"], state["shown"]

    @torch.no_grad()
    def _swap(self) -> None:
        """In place: a captured step reads and writes these very tensors."""
        held = [tensor.clone() for tensor in self._live]
        torch._foreach_copy_(self._live, self._average)
        torch._foreach_copy_(self._average, held)
        self._shown = not self._shown


class ScheduleFree(Shown):
    """The weights that schedule-free SGD stands for (Defazio et al., arXiv 2405.15682).

    They are none that the training's steps have seen, so batch norm's statistics are taken anew from some batches.

    Args:
        optimizer: of the `schedulefree` library; in training mode afterwards.
        network: it optimises.
        batches: makes inputs of the network, without end.
    """

    def __init__(self, optimizer: Optimizer, network: nn.Module, batches: Callable[[int], list[Tensor]]) -> None:
        self._optimizer, self._network, self._batches = optimizer, network, batches
        self._optimizer.train()  # type: ignore[attr-defined]

    def show(self) -> None:
        """Goes to the average, with batch norm's statistics of its own."""
        self._optimizer.eval()  # type: ignore[attr-defined]
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self._network.modules()):
            torch.optim.swa_utils.update_bn(self._batches(NORM_BATCHES), self._network)

    def hide(self) -> None:
        """Goes back to where gradients are taken."""
        self._optimizer.train()  # type: ignore[attr-defined]


def shown_weights(
    optimizer: Optimizer, network: nn.Module, recipe: Recipe, steps: int, batches: Callable[[int], list[Tensor]]
) -> Shown:
    """What stands for a training at an epoch's end, as its recipe says.

    Args:
        optimizer: of `make_optimizer`.
        network: that is trained.
        recipe: with `averaging` or schedule-free SGD, another thing than the weights of the last step.
        steps: an epoch.
        batches: a list of so many inputs of the network.
    """
    if recipe.optimizer == "schedulefree":
        return ScheduleFree(optimizer, network, batches)
    if recipe.averaging is not None:
        return Averaged(network, recipe.averaging, max(1, steps // AVERAGED_AN_EPOCH))
    return Shown()
