"""Faults in `miniformer.model`."""

from tests.faults import fault


@fault("miniformer.model.position:rotate")
def rotary_pairs_neighbors(original):
    """Rotary pairs neighboring dimensions with the angles of halves."""

    def rotate(x, rotation):
        import torch

        dim = 2 * rotation.cos.shape[-1]
        first, second = x[..., :dim:2], x[..., 1:dim:2]
        cos, sin = rotation.cos.to(x.dtype), rotation.sin.to(x.dtype)
        halves = first * cos - second * sin, second * cos + first * sin
        return torch.cat((*halves, x[..., dim:]), -1)

    return rotate
