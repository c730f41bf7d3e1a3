"""Hugging Face's RT-DETRs with random weights, of the official sizes."""

import torch
import transformers

SMALL = [8, 16, 24, 32]  # widths of the stages of a model for tests, which no paper has
SIZES = {  # depths of the stages, bottlenecks, expansion, decoder layers, encoder's width, its feed-forward's
    "r18": ([2, 2, 2, 2], False, 0.5, 3, 256, 1024),
    "r34": ([3, 4, 6, 3], False, 0.5, 4, 256, 1024),
    "r50m": ([3, 4, 6, 3], True, 0.5, 6, 256, 1024),
    "r50": ([3, 4, 6, 3], True, 1.0, 6, 256, 1024),
    "r101": ([3, 4, 23, 3], True, 1.0, 6, 384, 2048),
    "l": ([1, 1, 3, 1], None, 1.0, 6, 256, 1024),
    "x": ([1, 2, 5, 2], None, 1.0, 6, 384, 2048),
}
HGNET = {  # width of the stem, widths inside the stages
    "l": (48, [48, 96, 192, 384]),
    "x": (64, [64, 128, 256, 512]),
}


def make_backbone(size):
    if size == "small":
        layers = {"depths": [1, 1, 1, 1], "layer_type": "basic", "embedding_size": 8, "out_indices": [2, 3, 4]}
        return transformers.RTDetrResNetConfig(hidden_sizes=SMALL, **layers)
    depths, bottleneck, *_ = SIZES[size]
    if bottleneck is not None:
        widths = [256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512]
        kind = "bottleneck" if bottleneck else "basic"
        return transformers.RTDetrResNetConfig(
            hidden_sizes=widths, depths=depths, layer_type=kind, out_indices=[2, 3, 4]
        )
    stem, inside = HGNET[size]
    outside = [128, 512, 1024, 2048]
    return transformers.HGNetV2Config(
        stem_channels=[3, 32, stem],
        embedding_size=stem,
        hidden_sizes=outside,
        depths=depths,
        stage_in_channels=[stem, *outside[:-1]],
        stage_mid_channels=inside,
        stage_out_channels=outside,
        stage_num_blocks=depths,
        out_indices=[2, 3, 4],
    )


def make_model(size, version=1, nc=3, **others):
    """Make a model whose outputs differ from query to query and from class to class."""
    _, _, expansion, layers, width, inner = SIZES.get(size, (None, None, 0.5, 2, 32, 64))
    backbone = make_backbone(size)
    settings = {
        "backbone_config": backbone,
        "encoder_in_channels": list(backbone.hidden_sizes[1:]),
        "hidden_expansion": expansion,
        "decoder_layers": layers,
        "encoder_hidden_dim": width,
        "encoder_ffn_dim": inner,
        "decoder_in_channels": [width] * 3,
        "num_labels": nc,
        "freeze_backbone_batch_norms": False,
        **others,
    }
    if size == "small":
        settings |= {"d_model": 32, "decoder_ffn_dim": 64, "num_queries": 60}
    if version == 1:
        model = transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(**settings))
    else:
        model = transformers.RTDetrV2ForObjectDetection(transformers.RTDetrV2Config(**settings))
    randomise(model)
    return model.eval()


def randomise(model):
    """Draw weights by which queries and classes differ as in a trained model: new ones hardly tell them apart.

    The norms get the statistics of an image, as training leaves them.
    """
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for name, tensor in model.state_dict().items():
        if tensor.dim() > 1 and "embed.weight" not in name:
            tensor.normal_(0, (tensor.dim() / 4 / tensor[0].numel()) ** 0.5)
    model.eval()
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 1.0
        m.train()
    with torch.no_grad():
        model(draw_image(2, 160, 192))
    for m, momentum in zip(norms, momenta):
        m.momentum = momentum
        m.eval()


def draw_image(batch, height, width, dtype=torch.float):
    """Draw images of patches: on noise alone all positions of the maps look alike."""
    patches = torch.rand(batch, 3, height // 16, width // 16, dtype=dtype)
    return 0.8 * torch.nn.functional.interpolate(patches, size=(height, width)) + 0.2 * torch.rand(
        batch, 3, height, width, dtype=dtype
    )


def outputs(model, image):
    """What a model of either side finds: boxes and logits, query by query."""
    with torch.no_grad():
        if isinstance(model, transformers.PreTrainedModel):
            found = model(image)
            return found.pred_boxes, found.logits
        model.model[-1].shapes = []  # anchors are of the type of the image before
        _, (boxes, scores, *_) = model(image)
        return boxes[-1], scores[-1]


def largest_difference(ours, theirs, image):
    """The largest difference of boxes and logits, relative to the largest of each."""
    pairs = zip(outputs(ours, image), outputs(theirs, image), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def share_of_equal_queries(ours, theirs, image, bound):
    """The share of queries that the other model also has: where two scores are nearly equal, rounding decides."""
    one, other = (torch.cat([boxes[0], scores[0]], -1) for boxes, scores in (outputs(m, image) for m in (ours, theirs)))
    nearest = (one[:, None] - other).abs().amax(-1).amin(1)
    return float((nearest < bound * other.abs().max()).float().mean())
