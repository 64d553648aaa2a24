"""Placeholder until the fused one is in."""
import torch.nn.functional as F
def linear_cross_entropy(features, weight, labels, *, bias=None, softcap=None, chunk=None):
    logits = F.linear(features, weight, bias)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    return F.cross_entropy(logits.float(), labels, reduction="sum")
