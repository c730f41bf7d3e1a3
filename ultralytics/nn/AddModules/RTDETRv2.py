"""The decoder of RT-DETRv2: points chosen for each level, sampling without `grid_sample`, three ways to choose queries.

RT-DETRv2: Improved Baseline with Bag-of-Freebies, https://arxiv.org/abs/2407.17140, after Deformable DETR,
https://arxiv.org/abs/2010.04159. A query with the reference box (x, y, w, h) reads, in each head,

    sum over levels l and points p of  A[l, p] V_l(x + s w dx[l, p] / P_l, y + s h dy[l, p] / P_l),  s = 0.5

where V_l is the map of level l, P_l its number of points, A a softmax over all points, and dx, dy are linear in the
query. `bilinear` sampling is Deformable DETR's; with the same number of points on each level it computes what RT-DETR's
decoder computes, with the same weights. `discrete` sampling reads V_l at floor(x W + 0.5), floor(y H + 0.5), clamped
to the map; nothing flows back to the offsets, so that they keep what they are.

Differences from the official code: none in what is computed. There, discrete sampling clamps columns by the number of
rows, which changes maps that are wider than high; here each axis has its own bound, as in Hugging Face's port.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ultralytics.nn.AddModules.registry import head, register
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.nn.modules.transformer import MSDeformAttn

__all__ = ("MSDeformAttnV2", "RTDETRDecoderV2")

SAMPLING = "bilinear", "discrete"
SELECTION = "best_class", "agnostic", "one2many"
NO_SCORE = -1e4  # logit of what is no class; its probability and gradient are 0, in half precision too
ANCHOR_SIZE, ANCHOR_MARGIN = 0.05, 0.01  # of the image: an anchor's side at the first level; what it keeps to the edge


class MSDeformAttnV2(MSDeformAttn):
    """Deformable attention over several maps, with a number of points for each.

    Args:
        d_model: Channels of queries and maps.
        n_heads: Number of heads.
        points: Number of points of each level.
        sampling: `bilinear` or `discrete`.
        offset_scale: How far an offset of 1 reaches, of the reference box's sides, before it is divided by the points.
    """

    def __init__(
        self, d_model: int, n_heads: int, points: list[int], sampling: str = "bilinear", offset_scale: float = 0.5
    ):
        super().__init__(d_model, len(points), n_heads, 1)
        self.points, self.sampling, self.offset_scale = list(points), sampling, offset_scale
        total = sum(points)
        self.sampling_offsets = nn.Linear(d_model, n_heads * total * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * total)
        angle = torch.arange(n_heads) * (2 * torch.pi / n_heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)  # (heads, 2)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.cat([torch.arange(1, n + 1) for n in points])  # (total,)
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((direction[:, None] * distance[:, None]).flatten())
        self.sampling_offsets.requires_grad_(sampling != "discrete")

    def forward(
        self,
        query: torch.Tensor,
        refer_bbox: torch.Tensor,
        value: torch.Tensor,
        value_shapes: list,
        value_mask: Any = None,
    ) -> torch.Tensor:
        """Read the maps around the queries' boxes.

        Args:
            query: (B, N, C).
            refer_bbox: Centre, width and height from 0 to 1, (B, N, 1, 4).
            value: The maps, flattened and put one behind the other, (B, sum of H W, C).
            value_shapes: Height and width of each map.
            value_mask: True where nothing may be read, (B, sum of H W).

        Returns:
            (B, N, C).
        """
        batch, n = query.shape[:2]
        heads, total = self.n_heads, sum(self.points)
        value = self.value_proj(value)
        if value_mask is not None:
            value = value.masked_fill(value_mask[..., None], 0.0)
        value = value.view(batch, value.shape[1], heads, -1).transpose(1, 2).flatten(0, 1)  # (B heads, L, c)
        offset = self.sampling_offsets(query).view(batch, n, heads, total, 2)
        offset = offset * self.scale_points(query) * refer_bbox[:, :, None, :, 2:]
        # (B, N, heads, total, 2) to (B heads, N, total, 2), of the image, from 0 to 1
        place = (refer_bbox[:, :, None, :, :2] + offset).transpose(1, 2).flatten(0, 1)
        weight = self.attention_weights(query).view(batch, n, heads, total).softmax(-1).transpose(1, 2).flatten(0, 1)
        sample = self.sample_nearest if self.sampling == "discrete" else self.sample_bilinear
        out = sample(value, value_shapes, place, weight)  # (B heads, N, c)
        return self.output_proj(out.view(batch, heads, n, -1).transpose(1, 2).flatten(2))

    def scale_points(self, like: torch.Tensor) -> torch.Tensor:
        """Give how far an offset of 1 reaches at each point, (total, 1), of the reference box's sides."""
        numbers = [self.offset_scale / n for n in self.points for _ in range(n)]
        return torch.tensor(numbers, dtype=torch.double)[:, None].type_as(like)

    def sample_bilinear(
        self, value: torch.Tensor, shapes: list, place: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Weigh bilinear samples of maps (B, L, c) at places (B, N, P, 2) by (B, N, P): (B, N, c)."""
        grid, out = 2 * place - 1, 0
        maps = value.split([h * w for h, w in shapes], 1)
        for level, (h, w), at, by in zip(maps, shapes, grid.split(self.points, 2), weight.split(self.points, 2)):
            level = level.transpose(1, 2).reshape(value.shape[0], value.shape[2], h, w)
            samples = F.grid_sample(level, at, align_corners=False)  # (B, c, N, points)
            out = out + (samples * by[:, None]).sum(-1)
        return out.transpose(1, 2)

    def sample_nearest(
        self, value: torch.Tensor, shapes: list, place: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Weigh the nearest positions of maps (B, L, c) at places (B, N, P, 2) by (B, N, P): (B, N, c)."""
        indices, start = [], 0
        for (h, w), at in zip(shapes, place.split(self.points, 2)):
            # Bounded as whole numbers, so that a place that is not a number is inside, too
            x = (at[..., 0] * w + 0.5).long().clamp(0, w - 1)
            y = (at[..., 1] * h + 0.5).long().clamp(0, h - 1)
            indices.append(start + y * w + x)
            start += h * w
        index = torch.cat(indices, 2)  # (B, N, P)
        samples = value.gather(1, index.flatten(1)[..., None].expand(-1, -1, value.shape[2]))
        return (samples.view(*index.shape, -1) * weight[..., None]).sum(2)


@register(head)
class RTDETRDecoderV2(RTDETRDecoder):
    """RT-DETRv2's decoder.

    Row: `[[16, 19, 22], 1, RTDETRDecoderV2, [nc, 256, 300, 4, 8, 3]]`.

    Args:
        nc: Number of classes.
        ch: Channels of the maps.
        hd: Width.
        nq: Number of queries.
        ndp: Number of points in each map, of all maps or of each.
        nh: Number of heads.
        ndl: Number of decoder layers.
        d_ffn: Width inside the feed-forward networks.
        eval_idx: The decoder layer whose boxes are the result; a negative number counts from the end.
        sampling: `bilinear`, or `discrete`: the nearest position, without `grid_sample`.
        selection: By which score a position becomes a query: its best class's (`best_class`), one for all classes
            (`agnostic`), or each class's, by which one position can become several queries (`one2many`).
        offset_scale: How far the decoder looks beyond a box, in its sides.

    Raises:
        ValueError: For another sampling or selection, or numbers of points that do not go with the maps.
    """

    def __init__(
        self,
        nc: int = 80,
        ch: list[int] | tuple[int, ...] = (512, 1024, 2048),
        hd: int = 256,
        nq: int = 300,
        ndp: int | list[int] = 4,
        nh: int = 8,
        ndl: int = 6,
        d_ffn: int = 1024,
        eval_idx: int = -1,
        sampling: str = "bilinear",
        selection: str = "best_class",
        offset_scale: float = 0.5,
    ):
        points = [ndp] * len(ch) if isinstance(ndp, int) else list(ndp)
        if len(points) != len(ch) or any(type(n) is not int or n < 1 for n in points):
            raise ValueError(f"points {ndp}; expected a number of at least 1, or one for each of the {len(ch)} maps")
        if sampling not in SAMPLING:
            raise ValueError(f"sampling {sampling!r}; expected {' or '.join(SAMPLING)}")
        if selection not in SELECTION:
            raise ValueError(f"selection {selection!r}; expected {', '.join(SELECTION)}")
        super().__init__(nc, ch, hd, nq, 1, nh, ndl, d_ffn, eval_idx=eval_idx)
        self.selection = selection
        for layer in self.decoder.layers:
            layer.cross_attn = MSDeformAttnV2(hd, nh, points, sampling, offset_scale)
        if selection == "agnostic":
            prior = self.enc_score_head.bias.detach()[:1].clone()
            self.enc_score_head = nn.Linear(hd, 1)
            self.enc_score_head.bias.data = prior

    def _get_decoder_input(
        self, feats: torch.Tensor, shapes: list, dn_embed: torch.Tensor | None = None, dn_bbox: Any = None
    ) -> tuple[torch.Tensor, ...]:
        """Choose positions of the maps as queries.

        Args:
            feats: The maps, (B, sum of H W, C).
            shapes: Height and width of each map.
            dn_embed: Denoising queries, (B, D, C), which come first.
            dn_bbox: Their boxes' logits, (B, D, 4).

        Returns:
            Queries, (B, D + N, C); their boxes' logits, (B, D + N, 4); boxes, (B, N, 4), and logits of the classes, (B,
            N, nc), of the chosen positions. The one score for all classes stands in the place of class 0, and the
            others have `NO_SCORE`.
        """
        if self.selection != "one2many":  # upstream chooses by the best score, of all or of the one
            embed, boxes, enc_boxes, scores = super()._get_decoder_input(feats, shapes, dn_embed, dn_bbox)
            return embed, boxes, enc_boxes, F.pad(scores, (0, self.nc - scores.shape[-1]), value=NO_SCORE)
        anchors, valid = make_anchors(shapes, feats)
        features = self.enc_output(valid * feats)
        scores = self.enc_score_head(features)  # (B, L, nc)
        positions: Any = torch._shape_as_tensor(features)[1] if self.dynamic else features.shape[1]  # of any size
        count = positions.clamp(max=self.num_queries) if self.dynamic else min(self.num_queries, positions)
        chosen = (
            scores.flatten(1).topk(count, dim=1).indices.div(self.nc, rounding_mode="floor")[..., None]
        )  # (B, N, 1)
        embed = features.gather(1, chosen.expand(-1, -1, features.shape[2]))
        boxes = self.enc_bbox_head(embed) + anchors[0][chosen[..., 0]]
        scores = scores.gather(1, chosen.expand(-1, -1, self.nc))
        enc_boxes = boxes.sigmoid()
        if self.training:
            embed, boxes = embed.detach(), boxes.detach()
        if dn_embed is not None and dn_bbox is not None:
            embed, boxes = torch.cat([dn_embed, embed], 1), torch.cat([dn_bbox, boxes], 1)
        return embed, boxes, enc_boxes, scores


def make_anchors(shapes: list[list[int]], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Make an anchor box for each position of the maps.

    Args:
        shapes: Height and width of each map.
        like: A tensor of the type and device to use.

    Returns:
        The logits of centre, width and height, (1, sum of H W, 4), infinite where a box is too near to an edge; and
        True for the others, (1, sum of H W, 1).
    """
    boxes = []
    for i, (h, w) in enumerate(shapes):
        y, x = ((torch.arange(n).type_as(like) + 0.5) / n for n in (h, w))
        centres = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).view(-1, 2)
        boxes.append(torch.cat([centres, torch.full_like(centres, ANCHOR_SIZE * 2**i)], -1))
    anchors = torch.cat(boxes)[None]
    valid = ((anchors > ANCHOR_MARGIN) & (anchors < 1 - ANCHOR_MARGIN)).all(-1, keepdim=True)
    return anchors.logit().masked_fill(~valid, float("inf")), valid
