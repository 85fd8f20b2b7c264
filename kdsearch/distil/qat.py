"""Quantisation-aware training by torchao's pt2e flow, and a teacher whose feature maps are quantised.

Activations are uint8 with one range per tensor (a moving average); weights are int8 of 7 bits, symmetric, with one
range per channel; biases are int32. 7 bits, because kernels without VNNI add two uint8 x int8 products in 16 bits,
which overflow with 8.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kdsearch import networks

logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao logs a deprecation at import

from torchao.quantization.pt2e import (  # noqa: E402 -- after the line above
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverOrFakeQuantize,
)
from torchao.quantization.pt2e.prepare import prepare as insert_fake_quantize  # noqa: E402
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e  # noqa: E402
from torchao.quantization.pt2e.quantizer import (  # noqa: E402
    DerivedQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

aten = torch.ops.aten
KEY = "quantization_annotation"
WEIGHTED = {aten.conv2d.default, aten.linear.default}
NORM = aten.batch_norm.default
MODE = {NORM: 5, aten.dropout.default: 2}  # index of the argument that says whether a node is in training mode
RELUS = {aten.relu.default, aten.relu_.default}
ADDS = {aten.add.Tensor, aten.add_.Tensor}
BATCH = ({0: Dim.DYNAMIC},)

ACTIVATION = QuantizationSpec(
    torch.uint8,
    FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, eps=2**-12),
    quant_min=0,
    quant_max=255,
    qscheme=torch.per_tensor_affine,
)
WEIGHT = QuantizationSpec(  # the range of the current weights: no average over steps
    torch.int8,
    FakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, eps=2**-20),
    quant_min=-63,
    quant_max=63,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
)


def _bias_scale(sources: list[ObserverOrFakeQuantize]) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of an int32 bias: the input's scale times the weight's, per channel."""
    of_input, of_weight = (source.calculate_qparams()[0] for source in sources)
    scale = of_input * of_weight
    return scale, torch.zeros_like(scale, dtype=torch.int32)


def _bias(node: fx.Node) -> DerivedQuantizationSpec:
    edges = [(node.args[0], node), (node.args[1], node)]
    whole = torch.iinfo(torch.int32)
    return DerivedQuantizationSpec(
        edges, _bias_scale, torch.int32, whole.min, whole.max, torch.per_channel_symmetric, 0
    )


def _last(node: fx.Node) -> fx.Node:
    """Return the node whose output is quantised: after the batch norm and ReLU that one kernel includes."""
    for followers in ({NORM}, RELUS):
        if len(node.users) == 1 and next(iter(node.users)).target in followers:
            node = next(iter(node.users))
    return node


class RuntimeQuantizer(Quantizer):  # type: ignore[misc]
    """Quantises what ONNX Runtime has integer kernels for: convolutions, dense layers, additions and max-pools."""

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Annotate inputs and outputs of these nodes; the logits stay float."""
        for node in model.graph.nodes:
            if node.target in WEIGHTED:
                self._mark_weighted(node)
            elif node.target in ADDS and all(getattr(each, "op", "") == "call_function" for each in node.args[:2]):
                self._mark(node, dict.fromkeys(node.args[:2], ACTIVATION))
                self._mark(_last(node), {}, ACTIVATION)
            elif node.target is aten.max_pool2d.default:
                source = node.args[0]
                self._mark(node, {source: ACTIVATION}, SharedQuantizationSpec((source, node)))
            elif node.target is aten.adaptive_avg_pool2d.default:
                self._mark(node, {node.args[0]: ACTIVATION})
        return model

    def _mark_weighted(self, node: fx.Node) -> None:
        inputs: dict[Any, Any] = {node.args[0]: ACTIVATION, node.args[1]: WEIGHT}
        last = _last(node)
        if len(node.args) > 2 and node.args[2] is not None and last.target is not NORM:
            inputs[node.args[2]] = _bias(node)
        self._mark(node, inputs)
        if last.users and next(iter(last.users)).op != "output":
            self._mark(last, {}, ACTIVATION)

    @staticmethod
    def _mark(node: fx.Node, inputs: Mapping[Any, Any], output: Any = None) -> None:
        mark = node.meta.setdefault(KEY, QuantizationAnnotation(_annotated=True))
        mark.input_qspec_map.update(inputs)
        mark.output_qspec = output or mark.output_qspec

    def validate(self, model: fx.GraphModule) -> None:
        """Accept any model."""


class FakeQuantised(nn.Module):
    """A network that trains with simulated int8 arithmetic.

    `train()` and `eval()` work as in any module; activations are observed in training mode only.
    """

    capturable = False  # its observers read on the host whether they are enabled

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, classes)."""
        logits: Tensor = self.graph(images)
        return logits

    def train(self, mode: bool = True) -> FakeQuantised:
        """Set the mode in the nodes of the exported graph and in the observers, which do not follow it themselves."""
        for node in self.graph.graph.nodes:
            if node.target in MODE:
                node.update_arg(MODE[node.target], mode)
        self.graph.recompile()
        for module in self.graph.modules():  # a weight's range always follows the current weights, so it stays observed
            if isinstance(module, FakeQuantize) and not module.is_per_channel:
                module.enable_observer(mode)
        self.training = mode
        return self


def prepare(student: nn.Module, example: Tensor) -> FakeQuantised:
    """Return a fake-quantised copy of a student, in training mode.

    This is `prepare_qat_pt2e` without its fusion of convolution and batch norm, which takes seconds here and a minute
    in `convert_pt2e`. With symmetric weights per channel the fusion changes nothing: quantising w k with the scale s
    |k| is quantising w with s.

    Args:
        student: on the CPU; not changed.
        example: (batch, channels, height, width), at least two images of its input.
    """
    graph = torch.export.export(copy.deepcopy(student).train(), (example,), dynamic_shapes=BATCH).module()
    annotated = RuntimeQuantizer().annotate(graph)
    return FakeQuantised(insert_fake_quantize(annotated, {}, is_qat=True)).train()


def convert(trained: FakeQuantised, example: Tensor) -> fx.GraphModule:
    """Return a copy to export, with integer weights, quantise and dequantise nodes, and no batch norm.

    Args:
        trained: from `prepare`, after at least one forward pass in training mode.
        example: (batch, channels, height, width), its input.
    """
    graph = copy.deepcopy(trained).cpu().eval().requires_grad_(False).graph
    _fold_norms(graph)
    graph(example)  # updates the weights' observers after folding; those of activations are off
    converted: fx.GraphModule = convert_pt2e(graph)
    return converted


def _fold_norms(graph: fx.GraphModule) -> None:
    """Fold each batch norm into its convolution's weight and bias, in place."""
    for norm in [node for node in graph.graph.nodes if node.target is NORM]:
        conv, statistics, eps = norm.args[0], norm.args[1:5], norm.args[7]
        gamma, beta, mean, variance = (_value(graph, node) for node in statistics)
        weight = _value(graph, conv.args[1].args[0])  # the input of its fake-quantise node
        bias = _value(graph, conv.args[2]) if len(conv.args) > 2 else None
        folded, shift = fuse_conv_bn_weights(weight, bias, mean, variance, eps, gamma, beta)
        weight.data = folded.data
        name = f"folded_bias_{conv.name}"
        graph.register_parameter(name, shift)
        with graph.graph.inserting_before(conv):
            conv.args = (*conv.args[:2], graph.graph.get_attr(name), *conv.args[3:])
        norm.replace_all_uses_with(conv)
        graph.graph.erase_node(norm)
    for count in [node for node in graph.graph.nodes if node.target in ADDS and node.args[0].op == "get_attr"]:
        graph.graph.erase_node(count)  # num_batches_tracked += 1
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _value(graph: fx.GraphModule, node: fx.Node | None) -> Any:
    if node is None:
        return None
    module, _, name = str(node.target).rpartition(".")
    return getattr(graph.get_submodule(module), name)


class QuantisedFeatures(nn.Module):
    """A teacher with its last feature map quantised uniformly over [0, top] (Wei et al., arXiv 1805.02152).

    Args:
        teacher: the input of its classifier is the feature map, which is not negative.
        top: the largest feature.
        bits: per feature.
    """

    def __init__(self, teacher: nn.Module, top: float, bits: int) -> None:
        super().__init__()
        self.teacher, self.top, self.levels = teacher, top, 2**bits - 1

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, classes), of the quantised features."""
        handle = networks.classifier(self.teacher).register_forward_pre_hook(
            lambda _, inputs: (self.quantise(inputs[0]),)
        )
        try:
            logits: Tensor = self.teacher(images)
        finally:
            handle.remove()
        return logits

    def quantise(self, features: Tensor) -> Tensor:
        """Round each feature to the nearest level."""
        return torch.fake_quantize_per_tensor_affine(features, self.top / self.levels, 0, 0, self.levels)
