"""Mobile multi-query attention.

Paper: "MobileNetV4: Universal Models for the Mobile Ecosystem", https://arxiv.org/abs/2404.10518
Origin: https://github.com/tensorflow/models, in the form that the RT-DETR tutorials published; timm's
`MultiQueryAttention2d` is the reference for the arithmetic.

All query heads share one key and one value head; SR is an optional strided depth-wise convolution of both:

    attention_j = softmax((X W^Qj) (SR(X) W^K)^T / sqrt(d_k)) (SR(X) W^V),   output = concat_j(attention_j) W^O

Differences from the published code, which mixes channels and positions, scales by sqrt(d_k / heads), drops scores
before the softmax and ignores `value_dim`: the equation above, any height and width, query strides that work, and
scores that are never materialised. A module unpickled from a tutorial checkpoint keeps the arithmetic that its
weights were trained with.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ultralytics.nn.AddModules.layers.execution_mode import is_eager
from ultralytics.nn.AddModules.layers.tutorial_warning import warn_of_tutorial_module
from ultralytics.nn.AddModules.registry import changes_channels, keeps_channels, register, residual_stage
from ultralytics.nn.AddModules.ResNetVD import ResNetVDBlock, ResNetVDStage
from ultralytics.nn.modules.block import ResNetBlock as UpstreamResNetBlock
from ultralytics.nn.modules.block import ResNetLayer
from ultralytics.nn.modules.conv import Conv
from ultralytics.utils.torch_utils import fuse_conv_and_bn

__all__ = "MultiQueryAttentionLayerWithDownSampling", "ResNetLayer_MQA", "ResNetVDStage_MQA"

SCORES = 2**26  # elements that an ONNX graph holds at a time, 256 MiB
ACT = nn.SiLU()  # one instance for all convolutions of this file: the published `layers` totals count it once


def share_act(*convs: Conv) -> None:
    """Give convolutions of the default activation this file's instance; another that a model file chose stays."""
    for conv in convs:
        if type(conv.act) is nn.SiLU:
            conv.act = ACT


def to_tokens(x: torch.Tensor) -> torch.Tensor:
    """Bring a (B, d, h, w) map to (B, 1, h * w, d), contiguous: else fused attention falls back to scores in memory."""
    return x.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()


@register(keeps_channels)
class MultiQueryAttentionLayerWithDownSampling(nn.Module):
    """Multi-query attention over a feature map, with optional down-sampling of queries, keys and values.

    Args:
        in_channels: Channels of the input and the output.
        num_heads: Query heads.
        key_dim: Channels of a query head and of the shared key head.
        value_dim: Channels of the shared value head.
        query_h_strides, query_w_strides: Average-pooling of the queries; the output is resized back.
        kv_strides: Stride of the depth-wise convolution before keys and values; 1 for none.
        dw_kernel_size: Kernel size of that convolution.
        dropout: Dropout of the attention weights.

    Shapes:
        Input and output: (B, in_channels, H, W), any H and W of at least the query strides.

    Raises:
        ValueError: If a size or stride is below 1, or a map is smaller than the query strides.
    """

    head_dim: int  # of tutorial checkpoints only

    def __init__(
        self,
        in_channels: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        query_h_strides: int,
        query_w_strides: int,
        kv_strides: int,
        dw_kernel_size: int = 3,
        dropout: float = 0.0,
    ):
        super().__init__()
        sizes = num_heads, key_dim, value_dim, query_h_strides, query_w_strides, kv_strides, dw_kernel_size
        if min(sizes) < 1:
            raise ValueError(f"heads, dims, strides and kernel size must be at least 1, got {sizes}")
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.query_h_strides = query_h_strides
        self.query_w_strides = query_w_strides
        self.kv_strides = kv_strides
        self.dw_kernel_size = dw_kernel_size

        if query_h_strides > 1 or query_w_strides > 1:
            self._query_downsampling_norm = nn.BatchNorm2d(in_channels)
        self._query_proj = self._project(in_channels, num_heads * key_dim)
        if kv_strides > 1:
            self._key_dw_conv = self._reduce(in_channels)
            self._value_dw_conv = self._reduce(in_channels)
        self._key_proj = self._project(in_channels, key_dim)
        self._value_proj = self._project(in_channels, value_dim)
        self._output_proj = self._project(num_heads * value_dim, in_channels)
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def _project(c1: int, c2: int) -> nn.Sequential:
        """A 1x1 convolution without bias, initialised as timm does."""
        conv = nn.Conv2d(c1, c2, kernel_size=1, bias=False)
        nn.init.xavier_uniform_(conv.weight)
        return nn.Sequential(conv)

    def _reduce(self, c: int) -> nn.Sequential:
        """The paper's spatial reduction: a strided depth-wise convolution and its norm."""
        k, s = self.dw_kernel_size, self.kv_strides
        conv = nn.Conv2d(c, c, k, stride=s, padding=(s + k - 2) // 2, groups=c, bias=False)  # padded as timm does
        nn.init.xavier_uniform_(conv.weight)
        return nn.Sequential(conv, nn.BatchNorm2d(c))

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if self.is_tutorial:
            warn_of_tutorial_module("the tutorial's attention arithmetic")

    @property
    def has_query_strides(self) -> bool:
        """Whether queries are pooled before attention."""
        return self.query_h_strides > 1 or self.query_w_strides > 1

    @property
    def is_tutorial(self) -> bool:
        """Whether the module was unpickled from a tutorial checkpoint; only those carry `head_dim`."""
        return "head_dim" in self.__dict__

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attended map of the same shape."""
        B, _, H, W = x.shape
        strides = self.query_h_strides, self.query_w_strides
        query = x
        if self.has_query_strides:
            if strides[0] > H or strides[1] > W:
                raise ValueError(f"a {H} x {W} map is smaller than the query strides {strides}")
            query = self._query_downsampling_norm(F.avg_pool2d(x, strides))
        h, w = query.shape[2:]
        key = value = x
        if self.kv_strides > 1:
            key, value = self._key_dw_conv(x), self._value_dw_conv(x)
        q = self._query_proj(query)  # (B, heads * key_dim, h, w)
        k = self._key_proj(key)  # (B, key_dim, h', w')
        v = self._value_proj(value)  # (B, value_dim, h', w')

        dropout = self.dropout.p if self.training else 0.0
        if self.is_tutorial:
            out = self._attend_as_tutorial(q, k, v, dropout)
        else:
            q = q.reshape(B, self.num_heads, self.key_dim, h * w).transpose(2, 3).contiguous()  # (B, heads, N, key_dim)
            k, v = to_tokens(k), to_tokens(v)  # (B, 1, M, key_dim or value_dim): one head serves every query head
            if is_eager():  # heads stay apart: the fused backward runs them in parallel
                k, v = (t.expand(-1, self.num_heads, -1, -1) for t in (k, v))
            else:  # LiteRT could not expand
                q = q.reshape(B, 1, self.num_heads * h * w, self.key_dim)
            out = self._attend(q, k, v, dropout, self.key_dim**-0.5)
            out = out.reshape(B, self.num_heads, h * w, self.value_dim)
            out = out.transpose(2, 3).reshape(B, self.num_heads * self.value_dim, h, w)
        if self.has_query_strides:
            out = F.interpolate(out, size=(H, W), mode="bilinear", align_corners=False)
        return self._output_proj(out)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float, scale: float) -> torch.Tensor:
        """Attention of (B, heads, N, key_dim) over (B, heads, M, key_dim) and (…, value_dim) in a fused kernel.

        The fused kernels want one head size: the smaller of the two is zero-padded, which changes no result.
        """
        missing = self.value_dim - self.key_dim
        if missing < 0:
            v = F.pad(v, (0, -missing))
        elif missing > 0:
            q, k = (F.pad(t, (0, missing)) for t in (q, k))
        parts = [
            F.scaled_dot_product_attention(part, k, v, dropout_p=dropout, scale=scale) for part in query_parts(q, k)
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2))[..., : self.value_dim]

    def _attend_as_tutorial(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
        """The published arithmetic: Q and V in NCHW read as (tokens, dim) without a transpose, another scale."""
        B, C, h, w = q.shape
        q, v = (t.reshape(B, 1, -1, self.key_dim) for t in (q, v))  # (B, 1, heads * N or M, key_dim)
        k = to_tokens(k)  # (B, 1, M, key_dim)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.head_dim**-0.5)
        return out.reshape(B, C, h, w)

    def fuse(self) -> None:
        """Fold the norms of the spatial reduction into its convolutions, for inference."""
        for name in ("_key_dw_conv", "_value_dw_conv"):
            reduce = getattr(self, name, None)
            if reduce is not None and len(reduce) == 2:
                setattr(self, name, nn.Sequential(fuse_conv_and_bn(*reduce)))


def query_parts(q: torch.Tensor, k: torch.Tensor) -> list[torch.Tensor]:
    """Part the queries for ONNX, which has no fused attention: the scores of a part alone are in memory at a time.

    Args:
        q: Queries. (B, heads, N, d)
        k: Keys. (B, heads, M, d)

    Returns:
        The queries, in one piece unless they are exported to ONNX; a number of pieces that is a power of two, since a
        map's positions are a multiple of one at any size of the image.
    """
    if not torch.onnx.is_in_onnx_export():
        return [q]
    scores = int(q.shape[0]) * int(q.shape[1]) * int(q.shape[2]) * int(k.shape[2])  # constants of the graph
    parts = 1 << (-(-scores // SCORES) - 1).bit_length()
    rows = (q.shape[2] + parts - 1) // parts  # of the graph's own input
    return [q[:, :, i * rows : (i + 1) * rows] for i in range(parts)]


class ResNetBlock(UpstreamResNetBlock):
    """Upstream's bottleneck with multi-query attention `cv4` between its second and its third convolution."""

    def __init__(self, c1: int, c2: int, s: int = 1, e: int = 4, kv_strides: int = 1):
        super().__init__(c1, c2, s, e)
        share_act(self.cv1, self.cv2)
        self.cv4 = MultiQueryAttentionLayerWithDownSampling(c2, 2, 48, 48, 1, 1, kv_strides)
        self.shortcut: Any = self._modules.pop("shortcut")  # behind cv4, as in tutorial checkpoints

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, c1, H, W) to (B, e * c2, H / s, W / s)."""
        return F.relu(self.cv3(self.cv4(self.cv2(self.cv1(x)))) + self.shortcut(x))


@register(residual_stage)
class ResNetLayer_MQA(ResNetLayer):
    """Upstream's `ResNetLayer` whose bottlenecks hold multi-query attention of two heads of 48 channels.

    Args:
        c1: Input channels.
        c2: Output channels of the stem (`is_first`), else of the bottleneck: the stage gives e * c2.
        s: Stride of the first block.
        is_first: Build the stem: a 7x7 convolution of stride 2 and max-pooling, no attention.
        n: Blocks.
        e: Expansion.
        kv_strides: Spatial reduction of keys and values in every block; 1, as published, for none.

    Shapes:
        Input (B, c1, H, W); output (B, c2, H / 4, W / 4) of the stem, else (B, e * c2, H / s, W / s).
    """

    def __init__(
        self, c1: int, c2: int, s: int = 1, is_first: bool = False, n: int = 1, e: int = 4, kv_strides: int = 1
    ):
        if is_first:
            super().__init__(c1, c2, s, is_first, n, e)
            stem: Any = self.layer[0]
            share_act(stem)
        else:  # upstream's constructor would first build the blocks that these replace
            nn.Module.__init__(self)
            self.is_first = False
            blocks = (ResNetBlock(e * c2 if i else c1, c2, 1 if i else s, e, kv_strides) for i in range(n))
            self.layer = nn.Sequential(*blocks)


class ResNetVDBlock_MQA(ResNetVDBlock):
    """A block of ResNet-vd with multi-query attention of heads of 48 channels behind its branch."""

    def __init__(self, c1: int, c2: int, s: int = 1, bottleneck: bool = False, project: bool = False):
        super().__init__(c1, c2, s, bottleneck, project)
        self.mqa = MultiQueryAttentionLayerWithDownSampling(c2, 2, 48, 48, 1, 1, 1)

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        """Compute what is added to the shortcut."""
        return self.mqa(super().branch(x))


@register(changes_channels)
class ResNetVDStage_MQA(ResNetVDStage):
    """A stage of ResNet-vd, as `ResNetVDStage`, whose blocks end in multi-query attention of two heads of 48 channels.

    Row: `[-1, 2, ResNetVDStage_MQA, [256, 2]]`.
    """

    block = ResNetVDBlock_MQA
