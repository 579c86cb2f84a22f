"""Four programs as people write them for MindSpore: a vision transformer, a language model, a
tagger and a PINN.

Their products in float64 are in tests/golden/programs.npz (ci/golden/make_programs.py); weights and
batches are those of program_data.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import mindspore as ms
import numpy as np
import program_data
from mindspore import nn, ops
from mindspore.common.initializer import TruncatedNormal, initializer

import mindspore_hessian as mh

GOLDEN = Path(__file__).parent / "golden" / "programs.npz"


# --- a vision transformer, as mindcv writes it ----------------------------------------------------


class DropPath(nn.Cell):
    def __init__(self, drop_prob=0.0):
        super().__init__()
        self.keep_prob = 1.0 - drop_prob

    def construct(self, x):
        if self.keep_prob == 1.0 or not self.training:
            return x
        return ops.dropout(x, 1.0 - self.keep_prob)


class Attention(nn.Cell):
    def __init__(self, dim, num_heads=2, qkv_bias=True, attn_drop=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = ms.Tensor(self.head_dim**-0.5)
        self.qkv = nn.Dense(dim, dim * 3, has_bias=qkv_bias)
        self.attn_drop = nn.Dropout(p=attn_drop)
        self.proj = nn.Dense(dim, dim)
        self.unstack = ops.Unstack(axis=0)
        self.attn_matmul_v = ops.BatchMatMul()
        self.q_matmul_k = ops.BatchMatMul(transpose_b=True)

    def construct(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x)
        qkv = ops.reshape(qkv, (b, n, 3, self.num_heads, self.head_dim))
        qkv = ops.transpose(qkv, (2, 0, 3, 1, 4))
        q, k, v = self.unstack(qkv)
        attn = self.q_matmul_k(q, k)
        attn *= self.scale.astype(attn.dtype)
        attn = attn.astype(ms.float32)
        attn = ops.softmax(attn, axis=-1)
        attn = self.attn_drop(attn)
        out = self.attn_matmul_v(attn, v)
        out = ops.transpose(out, (0, 2, 1, 3))
        out = ops.reshape(out, (b, n, c))
        return self.proj(out)


class Mlp(nn.Cell):
    def __init__(self, in_features, hidden_features=None, act_layer=nn.GELU, drop=0.0):
        super().__init__()
        self.fc1 = nn.Dense(in_features, hidden_features or in_features)
        self.act = act_layer(approximate=False)
        self.fc2 = nn.Dense(hidden_features or in_features, in_features)
        self.drop = nn.Dropout(p=drop)

    def construct(self, x):
        x = self.fc1(x)
        x = self.act(x)
        x = self.drop(x)
        x = self.fc2(x)
        return self.drop(x)


class Block(nn.Cell):
    def __init__(self, dim):
        super().__init__()
        self.norm1 = nn.LayerNorm((dim,), epsilon=1e-6)
        self.attn = Attention(dim)
        self.drop_path = DropPath(0.1)
        self.norm2 = nn.LayerNorm((dim,), epsilon=1e-6)
        self.mlp = Mlp(dim, 2 * dim)

    def construct(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x += self.drop_path(self.mlp(self.norm2(x)))
        return x


class VisionTransformer(nn.Cell):
    def __init__(self, dim=8, depth=2, classes=3):
        super().__init__()
        self.patch_embed = nn.Conv2d(2, dim, 4, stride=4, pad_mode="valid", has_bias=True)
        self.cls_token = ms.Parameter(initializer(TruncatedNormal(0.02), (1, 1, dim), ms.float32))
        self.pos_embed = ms.Parameter(initializer(TruncatedNormal(0.02), (1, 5, dim), ms.float32))
        self.pos_drop = nn.Dropout(p=0.1)
        self.blocks = nn.CellList([Block(dim) for _ in range(depth)])
        self.norm = nn.LayerNorm((dim,), epsilon=1e-6)
        self.head = nn.Dense(dim, classes)

    def forward_features(self, x):
        x = self.patch_embed(x)
        x = ops.transpose(x.reshape(x.shape[0], x.shape[1], -1), (0, 2, 1))
        cls_tokens = ops.broadcast_to(self.cls_token, (x.shape[0], -1, -1))
        x = ops.concat((cls_tokens, x), axis=1)
        x += self.pos_embed
        x = self.pos_drop(x)
        for blk in self.blocks:
            x = blk(x)
        return self.norm(x)

    def forward_head(self, x):
        return self.head(x[:, 0])

    def construct(self, x):
        x = self.forward_features(x)
        return self.forward_head(x)


# --- a language model with tied embeddings, as mindnlp writes it ----------------------------------


class GPTConfig:
    n_embd, n_head, n_layer, vocab_size, n_positions = 8, 2, 2, 7, 6
    layer_norm_epsilon = 1e-5
    activation_function = "gelu_new"


class NewGELU(nn.Cell):
    def construct(self, x):
        return (
            0.5 * x * (1.0 + ops.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * ops.pow(x, 3.0))))
        )


ACT2FN = {"gelu_new": NewGELU}


class GPTBlock(nn.Cell):
    def __init__(self, config):
        super().__init__()
        dim = config.n_embd
        self.n_head = config.n_head
        self.ln_1 = nn.LayerNorm((dim,), epsilon=config.layer_norm_epsilon)
        self.attn = nn.Dense(dim, 3 * dim)
        self.proj = nn.Dense(dim, dim)
        self.ln_2 = nn.LayerNorm((dim,), epsilon=config.layer_norm_epsilon)
        self.fc = nn.Dense(dim, 2 * dim)
        self.out = nn.Dense(2 * dim, dim)
        self.act = ACT2FN[config.activation_function]()
        self.bias = ms.Tensor(np.tril(np.ones((config.n_positions,) * 2)), ms.bool_)

    def split_heads(self, tensor):
        new_shape = tensor.shape[:-1] + (self.n_head, tensor.shape[-1] // self.n_head)
        return tensor.view(new_shape).permute(0, 2, 1, 3)

    def attend(self, x):
        query, key, value = ops.split(self.attn(x), x.shape[-1], axis=2)
        query, key, value = self.split_heads(query), self.split_heads(key), self.split_heads(value)
        attn_weights = ops.matmul(query, key.swapaxes(-1, -2))
        attn_weights = attn_weights / (value.shape[-1] ** 0.5)
        length = query.shape[-2]
        causal_mask = self.bias[:length, :length]
        attn_weights = attn_weights.masked_fill(ops.logical_not(causal_mask), -1e9)
        attn_weights = ops.softmax(attn_weights, axis=-1)
        attn_output = ops.matmul(attn_weights, value).permute(0, 2, 1, 3)
        return self.proj(attn_output.reshape(x.shape))

    def construct(self, hidden_states):
        residual = hidden_states
        hidden_states = self.ln_1(hidden_states)
        hidden_states = self.attend(hidden_states) + residual
        residual = hidden_states
        hidden_states = self.ln_2(hidden_states)
        hidden_states = self.out(self.act(self.fc(hidden_states)))
        hidden_states += residual
        return hidden_states


class GPT(nn.Cell):
    def __init__(self, config=GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.CellList([GPTBlock(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm((config.n_embd,), epsilon=config.layer_norm_epsilon)

    def construct(self, input_ids):
        position_ids = ops.arange(0, input_ids.shape[-1], dtype=ms.int32)
        hidden_states = self.wte(input_ids) + self.wpe(position_ids)
        for block in self.h:
            hidden_states = block(hidden_states)
        hidden_states = self.ln_f(hidden_states)
        logits = ops.matmul(hidden_states, self.wte.embedding_table.swapaxes(0, 1))
        return logits.view(-1, self.config.vocab_size)


# --- a tagger -------------------------------------------------------------------------------------


class Tagger(nn.Cell):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.rnn = nn.GRU(6, 4, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm([8], epsilon=1e-5)
        self.out = nn.Dense(8, 5)

    def construct(self, words):
        x = self.embed(words) * 20
        states, _ = self.rnn(x)
        return self.out(self.norm(states)).reshape(-1, 5)


# --- a PINN: the residual of the Helmholtz equation -----------------------------------------------


class Pinn(nn.Cell):
    def __init__(self, hidden=8):
        super().__init__()
        self.layers = nn.CellList([nn.Dense(2, hidden), nn.Dense(hidden, hidden)])
        self.out = nn.Dense(hidden, 1)
        self.laplacian = mh.laplacian(self.u, in_axes=0)

    def u(self, x):
        for layer in self.layers:
            x = ops.tanh(layer(x))
        return self.out(x)[..., 0]

    def construct(self, points):
        return (self.laplacian(points) + self.u(points)).expand_dims(1)


PROGRAMS = {"vit": VisionTransformer, "gpt": GPT, "tagger": Tagger, "pinn": Pinn}


def load(program):
    """``(network, loss_fn, batches)``, in evaluation mode."""
    network = PROGRAMS[program]()
    network.set_train(False)
    with np.load(GOLDEN) as golden:
        names = [str(name) for name in golden[f"{program}/order"]]
        assert [p.name for p in network.trainable_params()] == names
        for parameter in network.trainable_params():
            shape = tuple(golden[f"{program}/shape/{parameter.name}"])
            assert tuple(parameter.shape) == shape, parameter.name
            parameter.set_data(
                ms.Tensor(program_data.weight(program, parameter.name, shape).astype(np.float32))
            )
    classes = program_data.CLASSES[program]
    batches = []
    for x, y in program_data.batches(program):
        y = y.astype(np.int32).reshape(-1) if classes else y.astype(np.float32)
        batches.append(
            (ms.Tensor(x.astype(np.int32 if x.dtype.kind == "i" else np.float32)), ms.Tensor(y))
        )
    return network, nn.CrossEntropyLoss() if classes else nn.MSELoss(), batches
