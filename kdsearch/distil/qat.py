"""Quantisation-aware training by torchao's pt2e flow, and a teacher whose feature maps are quantised.

The scheme: activations are uint8, one range a tensor (a moving average); weights are int8 of 7 bits, symmetric, one
range a channel; biases int32. 7 bits, because kernels without VNNI add two uint8 x int8 products in 16 bits, which 8
bits overflow.
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

logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # torchao's import logs a deprecation of its own

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
DROPOUT = aten.dropout.default
MODE = {NORM: 5, DROPOUT: 2}  # which argument of an exported node says whether it trains
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
WEIGHT = QuantizationSpec(  # the range of the weights as they are: no average over steps
    torch.int8,
    FakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0, eps=2**-20),
    quant_min=-63,
    quant_max=63,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
)


def _bias_scale(sources: list[ObserverOrFakeQuantize]) -> tuple[Tensor, Tensor]:
    """Scale and zero point of an int32 bias: the input's scale times the weight's, a channel."""
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
    """The node whose output is quantised: past the batch norm and the ReLU that one kernel takes in."""
    for followers in ({NORM}, RELUS):
        if len(node.users) == 1 and next(iter(node.users)).target in followers:
            node = next(iter(node.users))
    return node


def _is_computed(argument: object) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "call_function"


class RuntimeQuantizer(Quantizer):  # type: ignore[misc]
    """Quantises what ONNX Runtime has integer kernels for: convolutions, dense layers, additions and max-pools."""

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Marks inputs and outputs of each such node; the logits stay float."""
        for node in model.graph.nodes:
            if node.target in WEIGHTED:
                self._mark_weighted(node)
            elif node.target in ADDS and all(_is_computed(each) for each in node.args[:2]):
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
        """Nothing to refuse."""


class FakeQuantised(nn.Module):
    """A network that trains as if it were int8.

    `train()` and `eval()` work as in any module, and nothing is observed in evaluation mode.
    """

    capturable = False  # its observers ask the device whether they are on

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, classes)."""
        logits: Tensor = self.graph(images)
        return logits

    def train(self, mode: bool = True) -> FakeQuantised:
        """Sets the mode: an exported graph holds it in its nodes, and observers do not look at it by themselves."""
        for node in self.graph.graph.nodes:
            if node.target in MODE:
                node.update_arg(MODE[node.target], mode)
        self.graph.recompile()
        for module in self.graph.modules():  # a weight's range is that of the weights now, so it stays observed
            if isinstance(module, FakeQuantize) and not module.is_per_channel:
                module.enable_observer(mode)
        self.training = mode
        return self


def prepare(student: nn.Module, example: Tensor) -> FakeQuantised:
    """A fake-quantised copy of a student, in training mode.

    `prepare_qat_pt2e` without its fusion of convolution and batch norm, which costs seconds here and a minute in
    `convert_pt2e`. With symmetric weights a channel it changes nothing: quantising w k with the scale s |k| is
    quantising w with s.

    Args:
        student: on the CPU; not changed.
        example: (batch, channels, height, width), at least two images of its input.
    """
    graph = torch.export.export(copy.deepcopy(student).train(), (example,), dynamic_shapes=BATCH).module()
    annotated = RuntimeQuantizer().annotate(graph)
    return FakeQuantised(insert_fake_quantize(annotated, {}, is_qat=True)).train()


def convert(trained: FakeQuantised, example: Tensor) -> fx.GraphModule:
    """A copy with integer weights, quantise and dequantise nodes, and no batch norm: to be exported.

    Args:
        trained: of `prepare`, after at least one forward pass in training mode.
        example: (batch, channels, height, width), its input.
    """
    graph = copy.deepcopy(trained).cpu().eval().requires_grad_(False).graph
    _fold_norms(graph)
    graph(example)  # the weights' observers see what was folded; those of activations are off
    converted: fx.GraphModule = convert_pt2e(graph)
    return converted


def _fold_norms(graph: fx.GraphModule) -> None:
    """Folds each batch norm into its convolution's weight and bias, in place."""
    for norm in [node for node in graph.graph.nodes if node.target is NORM]:
        conv, statistics, eps = norm.args[0], norm.args[1:5], norm.args[7]
        gamma, beta, mean, variance = (_value(graph, node) for node in statistics)
        weight = _value(graph, conv.args[1].args[0])  # below its fake-quantise
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
    """The parameter or buffer that a node stands for."""
    if node is None:
        return None
    module, _, name = str(node.target).rpartition(".")
    return getattr(graph.get_submodule(module), name)


class QuantisedFeatures(nn.Module):
    """A teacher whose last feature map is quantised (Wei et al., arXiv 1805.02152): uniformly over [0, top].

    Args:
        teacher: its classifier's input is the feature map, not negative.
        top: the largest feature.
        bits: of a feature.
    """

    def __init__(self, teacher: nn.Module, top: float, bits: int) -> None:
        super().__init__()
        self.teacher, self.top, self.levels = teacher, top, 2**bits - 1

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, classes), of the quantised features."""
        handle = networks.classifier(self.teacher).register_forward_pre_hook(
            lambda _, inputs: (self.quantise(inputs[0]),)
        )
        try:
            logits: Tensor = self.teacher(images)
        finally:
            handle.remove()
        return logits

    def quantise(self, features: Tensor) -> Tensor:
        """Each feature at the nearest of its levels."""
        return torch.fake_quantize_per_tensor_affine(features, self.top / self.levels, 0, 0, self.levels)
