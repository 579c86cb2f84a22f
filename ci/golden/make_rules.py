"""Make tests/golden/rules.npz: second and third derivatives of what tests/ops_table.py lists, from torch, float64.

Usage: python ci/golden/make_rules.py      (an environment with torch; MindSpore is not needed)

For each row f and its input x, direction v: with s(x) = sum(w (y + y^2/2)), y = f(x), w = wave(shape of y) + 1.5,
the file holds ``name/x``, ``name/v``, ``name/hvp`` = s''(x) v and ``name/third`` = s'''(x)[v, v].
"""
import math
import pathlib
import zlib

import numpy as np
import sampling
import torch
import torch.nn.functional as F

OUT = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "rules.npz"
torch.set_default_dtype(torch.float64)


def wave(*shape, phase=0.3):
    """The constants of both tables, without a file: sin(phase + 1.7 k)."""
    return np.sin(phase + 1.7 * np.arange(math.prod(shape))).reshape(shape)


def c(*shape, phase=0.9):
    return torch.tensor(wave(*shape, phase=phase))


M, IMG, VOL, SEQ, STACK = (4, 6), (2, 2, 6, 6), (1, 2, 4, 4, 4), (2, 3, 6), (2, 3, 4)
LABELS = torch.tensor([0, 2, 1, 3])
IGNORED = torch.tensor([0, -100, 1, 3])
LABELS_ND = torch.tensor([[[0, 1], [2, 3]], [[3, 3], [1, 0]]])
T = c(*M)
P = c(*M, phase=0.3).abs() * 0.8 + 0.1
SOFT = (c(*M, phase=0.3).abs() + 0.1) / (c(*M, phase=0.3).abs() + 0.1).sum(-1, keepdim=True)
W6 = c(6, phase=0.3).abs() + 0.3
W4 = c(4, phase=0.3).abs() + 0.3
SIGN = torch.sign(c(4, phase=0.3))
GATHER = torch.tensor([[0, 1], [1, 1], [2, 0], [3, 5]])
GAMMA, BETA = c(4, phase=0.5) + 1.5, c(4, phase=0.1)


def kl(x, t):
    return F.kl_div(torch.log_softmax(x, -1), t, reduction="mean")


def same_max(x):
    return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-1e30), 3, 2)


def same_avg(x):
    total = F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2, divisor_override=1)
    return total / F.avg_pool2d(F.pad(torch.ones_like(x), (0, 1, 0, 1)), 3, 2, divisor_override=1)


def multi_margin(x, p=1, weight=None, reduction="mean"):
    """F.multi_margin_loss, which has no second derivative."""
    own = x[torch.arange(len(x)), LABELS][:, None]
    terms = torch.relu(1 - own + x) ** p * (1 - F.one_hot(LABELS, x.shape[1])) / x.shape[1]
    total = terms.sum(1) * (1 if weight is None else weight[LABELS])
    return total.mean() if reduction == "mean" else total


def lstm(x, directions=1):
    net = torch.nn.LSTM(6, 4, batch_first=True, bidirectional=directions == 2)
    for k, weight in enumerate(net.parameters()):
        weight.data = 0.5 * c(*weight.shape, phase=0.1 * k)
    return net(x)[0]


def recurrent(kind):
    def f(x):
        net = kind(6, 4, batch_first=True)
        for k, weight in enumerate(net.parameters()):
            weight.data = 0.5 * c(*weight.shape, phase=0.1 * k)
        return net(x)[0]
    return f


def standardized(x, axes, eps=1e-5):
    """By formula: the third derivatives of torch's own layer_norm and batch_norm (training) differ from differences of
    its second ones by 70%."""
    centred = x - x.mean(axes, keepdim=True)
    return centred / ((centred ** 2).mean(axes, keepdim=True) + eps).sqrt()


def layer_norm(x):
    return standardized(x, (1,)) * W6 + c(6)


def batch_norm_train(x):
    return standardized(x, (0, 2, 3)) * GAMMA.reshape(4, 1, 1) + BETA.reshape(4, 1, 1)


ROWS = {  # name: (function, shape, low, high)
    "log_softmax": (lambda x: F.log_softmax(x, -1), M),
    "log_softmax_axis0": (lambda x: F.log_softmax(x, 0), M),
    "softmax": (lambda x: F.softmax(x, -1), M),
    "cross_entropy": (lambda x: F.cross_entropy(x, LABELS), M),
    "cross_entropy_weight_sum": (lambda x: F.cross_entropy(x, LABELS, W6, reduction="sum"), M),
    "cross_entropy_ignore": (lambda x: F.cross_entropy(x, IGNORED, W6, ignore_index=-100), M),
    "cross_entropy_smoothing": (lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.2), M),
    "cross_entropy_none": (lambda x: F.cross_entropy(x, LABELS, reduction="none"), M),
    "cross_entropy_soft": (lambda x: F.cross_entropy(x, SOFT), M),
    "cross_entropy_soft_weight": (lambda x: F.cross_entropy(x, SOFT, W6, label_smoothing=0.1), M),
    "cross_entropy_nd": (lambda x: F.cross_entropy(x, LABELS_ND), (2, 4, 2, 2)),
    "cross_entropy_mint": (lambda x: F.cross_entropy(x, LABELS), M),
    "softmax_cross_entropy_sparse": (lambda x: F.cross_entropy(x, LABELS, reduction="none"), M),
    "softmax_cross_entropy_dense": (lambda x: F.cross_entropy(x, SOFT, reduction="none"), M),
    "softmax_cross_entropy_primitive": (lambda x: F.cross_entropy(x, LABELS), M),
    "nll_loss": (lambda x: F.nll_loss(F.log_softmax(x, -1), LABELS), M),
    "nll_primitive": (lambda x: F.nll_loss(F.log_softmax(x, -1), IGNORED, W6), M),
    "nll_primitive_none": (lambda x: F.nll_loss(x ** 3, LABELS, W6, reduction="none"), M),
    "bce": (lambda x: F.binary_cross_entropy(torch.sigmoid(x), P), M),
    "bce_weight_none": (lambda x: F.binary_cross_entropy(torch.sigmoid(x), P, P, reduction="none"), M),
    "bce_logits": (lambda x: F.binary_cross_entropy_with_logits(x, P), M),
    "bce_logits_weights": (lambda x: F.binary_cross_entropy_with_logits(x, P, P, pos_weight=W6, reduction="sum"), M),
    "sigmoid_cross_entropy": (lambda x: F.binary_cross_entropy_with_logits(x, P, reduction="none"), M),
    "kl_div": (lambda x: kl(x, SOFT), M),
    "kl_div_target": (lambda x: F.kl_div(SOFT.log(), F.softmax(x, -1), reduction="none"), M),
    "kl_div_both": (lambda x: F.kl_div(F.log_softmax(x * T, -1), F.softmax(x, -1), reduction="batchmean"), M),
    "smooth_l1": (lambda x: F.smooth_l1_loss(x, T, reduction="none"), M),
    "smooth_l1_beta": (lambda x: F.smooth_l1_loss(x, T * x * x, beta=0.4), M),
    "huber": (lambda x: F.huber_loss(x, T, delta=0.7), M),
    "l1": (lambda x: F.l1_loss(x ** 3, T), M),
    "mse": (lambda x: F.mse_loss(x ** 3, T), M),
    "cosine_embedding": (lambda x: F.cosine_embedding_loss(x, T, SIGN, margin=0.1), M),
    "cosine_similarity": (lambda x: F.cosine_similarity(x, T), M),
    "gelu_erf": (lambda x: F.gelu(x), M),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), M),
    "fast_gelu": (lambda x: x * torch.sigmoid(1.702 * x), M),
    "elu": (lambda x: F.elu(x), M),
    "selu": (lambda x: F.selu(x), M),
    "celu": (lambda x: F.celu(x, 0.7), M),
    "relu": (lambda x: F.relu(x), M),
    "relu6": (lambda x: F.relu6(x), M, -4, 9),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), M),
    "prelu": (lambda x: F.prelu(x, W6), M),
    "prelu_weight": (lambda w: F.prelu(T, w), (6,)),
    "tanh": (lambda x: torch.tanh(x), M),
    "sigmoid": (lambda x: torch.sigmoid(x), M),
    "silu": (lambda x: F.silu(x), M),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), M),
    "hardswish": (lambda x: x * torch.clamp(x + 3, 0, 6) / 6, M, -5, 5),
    "hardsigmoid": (lambda x: torch.clamp(x + 3, 0, 6) / 6, M, -5, 5),
    "logsigmoid": (lambda x: F.logsigmoid(x), M),
    "softplus": (lambda x: F.softplus(x), M),
    "softsign": (lambda x: F.softsign(x), M),
    "tanhshrink": (lambda x: F.tanhshrink(x), M),
    "softshrink": (lambda x: F.softshrink(x, 0.3), M),
    "hardshrink": (lambda x: F.hardshrink(x, 0.3), M),
    "glu": (lambda x: F.glu(x, -1), M),
    "logit": (lambda x: torch.logit(x), M, 0.1, 0.9),
    "logit_eps": (lambda x: torch.logit(x, 0.2), M, 0.1, 0.9),
    "erf": (lambda x: torch.erf(x), M),
    "square": (lambda x: torch.square(x), M),
    "pow": (lambda x: x ** 2.5, M, 0.3, 2),
    "prod": (lambda x: torch.prod(x, -1), M),
    "prod_all_with_zeros": (lambda x: torch.prod(torch.where(torch.arange(24).reshape(4, 6) == 5, 0 * x, x)), M),
    "prod_keepdims": (lambda x: torch.prod(x, 0, keepdim=True), M),
    "reduce_prod": (lambda x: torch.prod(x, 1), M),
    "cumprod": (lambda x: torch.cumprod(x, 1), M),
    "inv": (lambda x: 1 / x, M, 0.3, 2),
    "mvlgamma": (lambda x: torch.mvlgamma(x, 3), M, 1.5, 4),
    "inverse": (lambda x: torch.linalg.inv(x), (2, 3, 3), -1, 1),
    "inverse_transposed": (lambda x: torch.linalg.inv(x).mT, (2, 3, 3), -1, 1),
    "det": (lambda x: torch.linalg.det(x), (2, 3, 3)),
    "det_one": (lambda x: torch.linalg.det(x), (3, 3)),
    "slogdet": (lambda x: torch.linalg.slogdet(x)[1], (2, 3, 3)),
    "max_axis": (lambda x: x.max(1)[0], M),
    "min_keepdim": (lambda x: x.min(0, keepdim=True)[0], M),
    "max_all": (lambda x: x.max(), M),
    "min_all": (lambda x: x.min(), M),
    "max_with_index": (lambda x: x.max(1)[0], M),
    "min_with_index": (lambda x: x.min(1)[0], M),
    "median_axis": (lambda x: x.median(0)[0], (5, 3)),
    "median_all": (lambda x: x.median(), (5, 3)),
    "multi_margin": (multi_margin, M),
    "multi_margin_squared": (lambda x: multi_margin(x, 2, W6, "none"), M),
    "max_unpool2d": (lambda x: F.max_unpool2d(x, torch.tensor([[[[0, 3], [9, 14]]]]), 2), (1, 1, 2, 2)),
    "max_unpool3d": (lambda x: F.max_unpool3d(x, torch.tensor([[[[[0, 11]]]]]), 2), (1, 1, 1, 1, 2)),
    "mirror_reflect": (lambda x: F.pad(x, (1, 2), "reflect"), (2, 3, 4)),
    "mirror_symmetric": (lambda x: torch.cat((x[..., :1], x, x[..., -1:]), -1), (2, 3, 4)),
    "adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(x, (3, 2, 2)), VOL),
    "norm": (lambda x: torch.linalg.vector_norm(x, dim=1), M),
    "logsumexp": (lambda x: torch.logsumexp(x, -1), M),
    "gather_elements": (lambda x: torch.gather(x ** 3, 1, GATHER), M),
    "gather": (lambda x: x[LABELS] ** 2, M),
    "slice": (lambda x: x[1:3, 2:5] ** 2, M),
    "embedding": (lambda w: w[torch.tensor([0, 1, 1, 4])] ** 2, (5, 6)),
    "einsum": (lambda x: torch.einsum("bi,bj->bij", x, x), M),
    "pad_constant": (lambda x: F.pad(x, (1, 2, 1, 1)) ** 2, (1, 2, 3, 4)),
    "pad_negative": (lambda x: F.pad(x, (-1, 2, 1, -1)) ** 2, (1, 2, 3, 4)),
    "pad_reflect": (lambda x: F.pad(x, (1, 2, 1, 1), "reflect") ** 2, (1, 2, 3, 4)),
    "pad_replicate": (lambda x: F.pad(x, (1, 2, 1, 1), "replicate") ** 2, (1, 2, 3, 4)),
    "pad_circular": (lambda x: F.pad(x, (1, 2, 1, 1), "circular") ** 2, (1, 2, 3, 4)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), IMG),
    "max_pool2d_dilated": (lambda x: F.max_pool2d(x, 3, 1, 1, 2, True), IMG),
    "max_pool_layer": (lambda x: F.max_pool2d(x, 3, 2), IMG),
    "max_pool_layer_same": (same_max, IMG),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), VOL),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), IMG),
    "avg_pool_layer": (lambda x: F.avg_pool2d(x, 2, 2), IMG),
    "avg_pool_layer_same": (same_avg, IMG),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2, 2), VOL),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (4, 3)), IMG),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, (3, 2, 2)), VOL),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, (4, 3)), IMG),
    "group_norm": (lambda x: F.group_norm(x, 2, GAMMA, BETA), (2, 4, 3, 3)),
    "layer_norm": (layer_norm, M),
    "batch_norm_train": (batch_norm_train, (3, 4, 2, 2)),
    "batch_norm_eval": (lambda x: F.batch_norm(x, BETA, W4, GAMMA, BETA, False), (3, 4, 2, 2)),
    "resize_bilinear": (lambda x: F.interpolate(x, (4, 9), mode="bilinear"), IMG),
    "resize_bilinear_corners": (lambda x: F.interpolate(x, (9, 7), mode="bilinear", align_corners=True), IMG),
    "resize_nearest": (lambda x: F.interpolate(x, (9, 7), mode="nearest"), IMG),
    "resize_bicubic": (lambda x: F.interpolate(x, (9, 7), mode="bicubic", align_corners=True), IMG),
    "resize_linear": (lambda x: F.interpolate(x, 9, mode="linear"), SEQ),
    "resize_linear_corners": (lambda x: F.interpolate(x, 9, mode="linear", align_corners=True), SEQ),
    "trace": (lambda x: torch.trace(x), M),
    "trace_ops": (lambda x: torch.trace(x), M),
    "permute_mint": (lambda x: torch.permute(x, (2, 0, 1)) ** 2, SEQ),
    "transpose_mint": (lambda x: torch.transpose(x, 0, 2) ** 2, SEQ),
    "unsqueeze_mint": (lambda x: x[:, None], M),
    "scatter_add_nd": (lambda x: torch.index_add(x * x, 0, torch.tensor([0, 2]), c(2, 6)), M),
    "resize_nearest_mint": (lambda x: F.interpolate(x, (4, 9), mode="nearest"), IMG),
    "resize_nearest_scaled": (lambda x: F.interpolate(x, scale_factor=(1.7, 2.3), mode="nearest"), IMG),
    "resize_trilinear": (lambda x: F.interpolate(x, (4, 3, 5), mode="trilinear"), VOL),
    "resize_nearest_3d": (lambda x: F.interpolate(x, (4, 3, 5), mode="nearest"), VOL),
    "matmul_vectors": (lambda x: x[0, 0] @ x[1, 1], STACK),
    "matmul_vector_matrix": (lambda x: x[0, :, 0] @ x[1], STACK),
    "matmul_matrix_vector": (lambda x: x[0] @ x[1, 0], STACK),
    "matmul_matrices": (lambda x: x[0] @ x[1].T, STACK),
    "matmul_stack_matrix": (lambda x: x @ x[0].T, STACK),
    "matmul_matrix_stack": (lambda x: x[0].T @ x, STACK),
    "matmul_stacks": (lambda x: x @ x.mT, STACK),
    "matmul_spread_stacks": (lambda x: x[:, None] @ x.mT[None], STACK),
    "matmul_vector_stack": (lambda x: x[0, :, 0] @ x, STACK),
    "matmul_stack_vector": (lambda x: x @ x[1, 0], STACK),
    "conv2d": (lambda x: F.conv2d(x, c(3, 2, 3, 3), stride=2, padding=1), IMG),
    "conv3d": (lambda x: F.conv3d(x, c(3, 2, 2, 2, 2), stride=2), VOL),
    "conv3d_weight": (lambda w: torch.tanh(F.conv3d(torch.tanh(F.conv3d(c(*VOL), w)), w)), (2, 2, 2, 2, 2)),
    "conv3d_transpose": (lambda x: F.conv_transpose3d(x, c(2, 3, 2, 2, 2)), VOL),
    "lstm": (lstm, SEQ),
    "lstm_bidirectional": (lambda x: lstm(x, 2), (1, 2, 6)),
    "gru": (recurrent(torch.nn.GRU), SEQ),
    "rnn": (recurrent(torch.nn.RNN), SEQ),
    **sampling.ROWS,
}


def derivatives(f, x, v):
    """(s''(x) v, s'''(x)[v, v])."""
    x = torch.tensor(x, requires_grad=True)
    v = torch.tensor(v)
    y = f(x)
    weight = torch.tensor(wave(*y.shape, phase=2.2)) + 1.5 if y.dim() else 1.0
    value = (weight * (y + 0.5 * y * y)).sum()
    out = []
    for _ in range(3):
        g = torch.zeros_like(x)
        if value.requires_grad:
            (g,) = torch.autograd.grad(value, x, create_graph=True, materialize_grads=True)
        out.append(g)
        value = (g * v).sum()
    return [g.detach().numpy() for g in out[1:]]


def main():
    data = {}
    for name, (f, shape, *domain) in ROWS.items():
        low, high = domain or (-1.5, 1.5)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        x, v = rng.uniform(low, high, shape), rng.standard_normal(shape)
        x = x.astype(np.float32).astype(np.float64)  # the same point in both precisions
        v = v.astype(np.float32).astype(np.float64)
        data[f"{name}/x"], data[f"{name}/v"] = x, v
        try:
            data[f"{name}/hvp"], data[f"{name}/third"] = derivatives(f, x, v)
        except RuntimeError as error:
            raise RuntimeError(f"{name}: {error}") from error
    np.savez_compressed(OUT, **data)
    print(f"{len(ROWS)} rows, {OUT.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
