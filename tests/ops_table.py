"""The operations whose second derivatives rest on our rules: a row each, under the names of ci/golden/make_rules.py."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mindspore import mint, nn, ops
from ops_functions import (
    EMBEDDED,
    IGNORED,
    LABELS,
    LABELS64,
    LABELS_ND,
    batch_norm,
    bce,
    bce_logits,
    conv2d,
    conv3d,
    conv3d_transpose,
    conv3d_weight,
    cosine_embedding,
    cross_entropy,
    gather_elements,
    group_norm,
    kl_div,
    kl_div_both,
    kl_div_target,
    layer,
    layer_norm,
    logsigmoid,
    loss,
    mse,
    nll,
    nll_function,
    of_cube,
    outer,
    plain,
    prelu,
    prelu_weight,
    probability,
    prod_zeros,
    recurrent,
    sigmoid_cross_entropy,
    sliced,
    smooth_l1_beta,
    soft,
    softmax_cross_entropy,
    sparse_primitive,
    squared,
    target,
)


@dataclass(frozen=True)
class Row:
    """An operation as MindSpore writes it.

    Attributes:
        name: the row of ci/golden/make_rules.py that it is compared with.
        make: given the dtype, the function of the input.
        rules: the derivative rules that its second derivative goes through.
        dtype: float64 where MindSpore's CPU kernels take it.
        tolerance: largest error, relative to the largest value.
        third: whether the third derivative is compared as well.
        linear: the operation is linear, and its values differ from the other framework's (its bicubic kernel comes from
            a table): the truth is the difference of two of MindSpore's gradients, exact for the quadratic at hand.
    """

    name: str
    make: Callable
    rules: tuple[str, ...] = ()
    dtype: type = np.float32
    tolerance: float = 2e-4
    third: bool = False
    linear: bool = False


TINY = {"dtype": np.float64, "tolerance": 1e-6}
F64 = {"dtype": np.float64, "tolerance": 1e-9}
ROWS = (
    Row("log_softmax", plain(ops.log_softmax, -1), ("LogSoftmaxGrad",), third=True),
    Row("log_softmax_axis0", plain(ops.log_softmax, 0), ("LogSoftmaxGrad",)),
    Row("softmax", plain(ops.softmax, -1), **F64),
    Row("cross_entropy", cross_entropy(LABELS), ("GatherDGradV2", "LogSoftmaxGrad"), third=True),
    Row("cross_entropy_weight_sum", cross_entropy(LABELS, True, reduction="sum"), ("GatherDGradV2", "LogSoftmaxGrad")),
    Row("cross_entropy_ignore", cross_entropy(IGNORED, True, ignore_index=-100), ("GatherDGradV2", "LogSoftmaxGrad")),
    Row("cross_entropy_smoothing", cross_entropy(LABELS, label_smoothing=0.2), ("GatherDGradV2", "LogSoftmaxGrad")),
    Row("cross_entropy_none", cross_entropy(LABELS, reduction="none"), ("GatherDGradV2", "LogSoftmaxGrad")),
    Row("cross_entropy_soft", loss(ops.cross_entropy, soft), ("LogSoftmaxGrad",)),
    Row("cross_entropy_nd", cross_entropy(LABELS_ND), ("GatherDGradV2", "LogSoftmaxGrad")),
    Row("cross_entropy_mint", plain(mint.nn.functional.cross_entropy, LABELS64), ("NLLLossGrad", "LogSoftmaxGrad")),
    Row("softmax_cross_entropy_sparse", lambda dtype: softmax_cross_entropy(True, dtype),
        ("SoftmaxCrossEntropyWithLogits",)),
    Row("softmax_cross_entropy_dense", lambda dtype: softmax_cross_entropy(False, dtype),
        ("SoftmaxCrossEntropyWithLogits",), third=True),
    Row("softmax_cross_entropy_primitive", sparse_primitive, ("SparseSoftmaxCrossEntropyWithLogits",), third=True),
    Row("nll_loss", nll_function, ("GatherDGradV2",)),
    Row("nll_primitive", nll(weight=True, labels=IGNORED), ("NLLLossGrad",)),
    Row("nll_primitive_none", nll(True, True, reduction="none"), ("NLLLossGrad",), third=True),
    Row("bce", bce(False), ("BinaryCrossEntropyGrad",), third=True),
    Row("bce_weight_none", bce(True), ("BinaryCrossEntropyGrad",)),
    Row("bce_logits", loss(ops.binary_cross_entropy_with_logits, probability),
        ("BinaryCrossEntropyWithLogitsBackward",), third=True),
    Row("bce_logits_weights", bce_logits, ("BinaryCrossEntropyWithLogitsBackward",)),
    Row("sigmoid_cross_entropy", sigmoid_cross_entropy, ("SigmoidCrossEntropyWithLogitsGrad",)),
    Row("kl_div", kl_div, ("KLDivLoss",), third=True),
    Row("kl_div_target", kl_div_target, ("KLDivLoss",)),
    Row("kl_div_both", kl_div_both, ("KLDivLoss",)),
    Row("smooth_l1", loss(ops.smooth_l1_loss, target), ("SmoothL1LossGrad",)),
    Row("smooth_l1_beta", smooth_l1_beta, ("SmoothL1LossGrad",), third=True),
    Row("huber", loss(ops.huber_loss, target, delta=0.7)),
    Row("l1", of_cube(ops.l1_loss)),
    Row("mse", mse, ("PowTensorScalar",), third=True),
    Row("cosine_embedding", cosine_embedding),
    Row("cosine_similarity", loss(ops.cosine_similarity, target)),
    Row("gelu_erf", plain(ops.gelu), ("PowTensorScalar",), third=True),
    Row("gelu_tanh", plain(ops.gelu, "tanh"), ("GeLUGrad",), third=True),
    Row("fast_gelu", plain(ops.fast_gelu), ("FastGeLUGrad",), third=True),
    Row("elu", plain(ops.elu), ("EluGrad",), third=True),
    Row("selu", plain(ops.selu), ("SeLU",), third=True),
    Row("celu", plain(ops.celu, 0.7)),
    Row("relu", plain(ops.relu), **F64),
    Row("relu6", plain(ops.relu6), ("ReLU6Grad",)),
    Row("leaky_relu", plain(ops.leaky_relu, 0.2)),
    Row("prelu", prelu, ("PReLUGrad",), third=True),
    Row("prelu_weight", prelu_weight, ("PReLUGrad",)),
    Row("silu", plain(ops.silu), third=True, **F64),
    Row("mish", plain(ops.mish)),
    Row("hardswish", plain(ops.hardswish), ("HSwishGrad",), third=True),
    Row("hardsigmoid", plain(ops.hardsigmoid), ("HSigmoidGrad",)),
    Row("logsigmoid", logsigmoid),
    Row("softplus", plain(ops.softplus)),
    Row("softsign", plain(ops.softsign)),
    Row("tanhshrink", plain(ops.tanhshrink)),
    Row("softshrink", plain(ops.softshrink, 0.3), ("SoftShrinkGrad",)),
    Row("hardshrink", plain(ops.hardshrink, 0.3), ("HShrinkGrad",)),
    Row("glu", plain(mint.nn.functional.glu, -1), ("GluGrad",), third=True),
    Row("logit", plain(ops.logit), ("LogitGrad",), third=True),
    Row("logit_eps", plain(ops.logit, 0.2), ("LogitGrad",)),
    Row("erf", plain(ops.erf), ("PowTensorScalar",), third=True, **F64),
    Row("square", plain(ops.square), ("PowTensorScalar",), third=True, **F64),
    Row("prod", plain(ops.prod, -1), ("ProdExt",), third=True, **F64),
    Row("prod_all_with_zeros", prod_zeros, ("ProdExt",), third=True, **F64),
    Row("prod_keepdims", plain(ops.prod, 0, True), ("ProdExt",), **F64),
    Row("reduce_prod", plain(ops.ReduceProd(), 1), ("ReduceProd",), third=True, **F64),
    Row("cumprod", plain(ops.cumprod, 1), **F64),
    Row("norm", plain(ops.norm, dim=1), **F64),
    Row("logsumexp", plain(ops.logsumexp, -1), **F64),
    Row("gather_elements", gather_elements, ("GatherDGradV2",), third=True, **F64),
    Row("gather", squared(ops.gather, LABELS, 0), **F64),
    Row("slice", sliced, ("SliceGrad",), third=True, **F64),
    Row("embedding", squared(ops.gather, EMBEDDED, 0)),
    Row("einsum", outer, **F64),
    Row("pad_constant", squared(ops.pad, (1, 2, 1, 1)), ("PadV3",), third=True, **F64),
    Row("pad_negative", squared(ops.pad, (-1, 2, 1, -1)), ("PadV3",), **F64),
    Row("pad_reflect", squared(ops.pad, (1, 2, 1, 1), "reflect"), ("PadV3",), **F64),
    Row("pad_replicate", squared(ops.pad, (1, 2, 1, 1), "replicate"), ("PadV3",), **F64),
    Row("pad_circular", squared(ops.pad, (1, 2, 1, 1), "circular"), ("PadV3",), **F64),
    Row("max_pool2d", plain(ops.max_pool2d, 3, 2, 1), ("MaxPoolGradWithArgmaxV2",), third=True),
    Row("max_pool2d_dilated", plain(ops.max_pool2d, 3, 1, 1, 2, ceil_mode=True), ("MaxPoolGradWithArgmaxV2",)),
    Row("max_pool_layer", layer(lambda dtype: nn.MaxPool2d(3, 2)), ("MaxPool", "MaxPoolGrad"), third=True),
    Row("max_pool_layer_same", layer(lambda dtype: nn.MaxPool2d(3, 2, "same")), ("MaxPool", "MaxPoolGrad")),
    Row("max_pool3d", plain(ops.max_pool3d, 2), ("MaxPool3DGradWithArgmax",)),
    Row("avg_pool2d", plain(ops.avg_pool2d, 3, 2, 1, True, False), ("AvgPool3D", "AvgPool3DGrad")),
    Row("avg_pool_layer", layer(lambda dtype: nn.AvgPool2d(2, 2)), ("AvgPoolGrad",)),
    Row("avg_pool_layer_same", layer(lambda dtype: nn.AvgPool2d(3, 2, "same")), ("AvgPoolGrad",)),
    Row("avg_pool3d", plain(ops.avg_pool3d, 2, 2), ("AvgPool3D", "AvgPool3DGrad")),
    Row("adaptive_avg_pool2d", plain(ops.adaptive_avg_pool2d, (4, 3)), ("AdaptiveAvgPool2DGrad",)),
    Row("adaptive_avg_pool3d", plain(ops.adaptive_avg_pool3d, (3, 2, 2)), ("AdaptiveAvgPool3DGrad",)),
    Row("adaptive_max_pool2d", plain(ops.adaptive_max_pool2d, (4, 3)), ("AdaptiveMaxPool2DGrad",)),
    Row("group_norm", layer(group_norm), ("GroupNormGrad",), third=True),
    Row("layer_norm", layer(layer_norm)),
    Row("batch_norm_train", layer(batch_norm(True))),
    Row("batch_norm_eval", layer(batch_norm(False))),
    Row("resize_bilinear", plain(ops.interpolate, size=(4, 9), mode="bilinear"), ("ResizeBilinearGrad",)),
    Row("resize_bilinear_corners", plain(ops.interpolate, size=(9, 7), mode="bilinear", align_corners=True),
        ("ResizeBilinearGrad",)),
    Row("resize_nearest", plain(ops.interpolate, size=(9, 7), mode="nearest"), ("ResizeNearestNeighborV2Grad",)),
    Row("resize_bicubic", plain(ops.interpolate, size=(9, 7), mode="bicubic", align_corners=True),
        ("ResizeBicubicGrad",), linear=True),
    Row("resize_linear", plain(ops.interpolate, size=(9,), mode="linear"), ("ResizeLinear1DGrad",)),
    Row("resize_trilinear", plain(ops.interpolate, size=(4, 3, 5), mode="trilinear"), ("UpsampleTrilinear3DGrad",)),
    Row("resize_nearest_3d", plain(ops.interpolate, size=(4, 3, 5), mode="nearest"), ("UpsampleNearest3DGrad",)),
    Row("conv2d", conv2d),
    Row("conv3d", conv3d, ("Conv3D", "Conv3DBackpropInput")),
    Row("conv3d_weight", conv3d_weight, ("Conv3D", "Conv3DBackpropInput", "Conv3DBackpropFilter")),
    Row("conv3d_transpose", conv3d_transpose, ("Conv3DTranspose",)),
    Row("lstm", recurrent(nn.LSTM), ("LSTM", "LSTMGrad")),
    Row("lstm_bidirectional", recurrent(nn.LSTM, bidirectional=True), ("LSTM", "LSTMGrad")),
    Row("gru", recurrent(nn.GRU)),
    Row("rnn", recurrent(nn.RNN)),
)
