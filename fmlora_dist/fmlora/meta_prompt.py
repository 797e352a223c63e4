"""DMP: prompt tokens that all tasks share and all tasks train (arXiv 2504.08823)."""

import torch
from torch import nn

from fmlora_dist.errors import UserError
from fmlora_dist.vit.backbone import Backbone

__all__ = ["MetaPrompt", "fold_class_position"]


class MetaPrompt(nn.Module):
    """P [1, m, d] between the class token and the patch tokens, without position.

    These are timm's register tokens, so the model stays a plain timm ViT (``reg_tokens=m``, ``no_embed_class=True``).
    """

    def __init__(self, backbone: Backbone, n_tokens: int):
        """Raises ``UserError`` when the backbone has no place for the tokens: registers or an embedding of its own."""
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(1, n_tokens, backbone.embed_dim))
        self._middle = torch.zeros(1, 1, backbone.embed_dim)
        if n_tokens:
            if backbone.reg_token is not None or type(backbone)._pos_embed is not Backbone._pos_embed:
                raise UserError(
                    f"method.prompt_tokens: found {n_tokens}, expected 0 for this backbone: it has register tokens, "
                    "or an embedding, of its own; turn the prompts off or choose another backbone"
                )
            fold_class_position(backbone)
            if backbone.cls_token is not None:
                self._middle = backbone.cls_token.detach()
            backbone.reg_token = self.tokens
            backbone.num_reg_tokens = n_tokens
            backbone.num_prefix_tokens += n_tokens

    def start(self, generator: torch.Generator) -> None:
        """Before task 1: the class token, which the pretrained attention knows, if there is one, plus N(0, 0.02).

        The paper is silent. Started around 0, ten prompts cost icons' frozen features 2.2 points of nearest-class-mean
        accuracy before they have learned anything; around the class token, half as much.
        """
        drawn = self._middle.cpu() + 0.02 * torch.randn(self.tokens.shape, generator=generator)
        self.tokens.data = drawn.to(self.tokens.device)


@torch.no_grad()
def fold_class_position(backbone: Backbone) -> None:
    """Move the class token's entry of the position embedding into the class token; the function stays the same."""
    if backbone.no_embed_class or backbone.pos_embed is None:
        return
    if backbone.cls_token is not None:
        backbone.cls_token = nn.Parameter(backbone.cls_token + backbone.pos_embed[:, :1], requires_grad=False)
        backbone.pos_embed = nn.Parameter(backbone.pos_embed[:, 1:].clone(), requires_grad=False)
    # Without a class token the entries are the patches' already, and timm must not add them to the prompts.
    backbone.no_embed_class = True
