"""DMP: prompts are timm's register tokens, shared by all tasks."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fmlora_dist.errors import UserError
from fmlora_dist.fmlora.meta_prompt import MetaPrompt, fold_class_position
from fmlora_dist.vit.backbone import Backbone, BackboneConfig, load_backbone

TINY: dict[str, Any] = {"depth": 2, "embed_dim": 48, "patch_size": 8}
IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def backbone(**options: Any) -> Backbone:
    config = BackboneConfig(name="vit_tiny_patch16_224", weights="random", options=TINY | options)
    model = load_backbone(config, image_size=32).model
    with torch.no_grad():
        for token in (model.cls_token, model.pos_embed):
            if token is not None:
                token.copy_(torch.randn(token.shape, generator=torch.Generator().manual_seed(1)))
    return model


def plain(method: Any, images: Tensor, tmp_path: Path, **options: Any) -> Tensor:
    """Logits of a plain timm model, made by timm alone from a file of the method's tensors."""
    with method.merged():
        state = {name: value.clone() for name, value in method.backbone.state_dict().items()}
        for number, layer in enumerate(method.layers):
            state[f"blocks.{number}.attn.qkv.weight"] = layer.effective.clone()
    head = method.head
    state["head.weight"] = torch.cat([head.past_weight, head.weight.detach()])
    state["head.bias"] = torch.cat([head.past_bias, head.bias.detach()])
    save_file(state, tmp_path / "model.safetensors")
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, num_classes=head.n_classes, **(TINY | options)
    ).eval()
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        logits: Tensor = model(images)
    return logits


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_folding_the_class_position_leaves_the_features_as_they_were(global_pool: str) -> None:
    model = backbone(global_pool=global_pool)
    with torch.no_grad():
        before = model(IMAGES)
        fold_class_position(model)
        assert torch.equal(model(IMAGES), before)
    assert model.no_embed_class
    assert model.pos_embed is not None and model.pos_embed.shape == (1, 16, 48)


def test_folding_twice_is_folding_once() -> None:
    model = backbone()
    fold_class_position(model)
    once = {name: value.clone() for name, value in model.state_dict().items()}
    fold_class_position(model)
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("options", [{"class_token": False, "global_pool": "avg"}, {"no_embed_class": True}])
def test_position_embeddings_of_patches_alone_stay_as_they_are(options: dict[str, Any]) -> None:
    model = backbone(**options)
    assert model.pos_embed is not None
    positions = model.pos_embed.clone()
    with torch.no_grad():
        before = model(IMAGES)
        fold_class_position(model)
        assert torch.equal(model(IMAGES), before)
        MetaPrompt(model, 3).start(torch.Generator().manual_seed(0))
        assert not torch.equal(model(IMAGES), before)
    assert torch.equal(model.pos_embed, positions)


def test_prompts_stand_between_the_class_token_and_the_patches() -> None:
    """Written out: [class + its position, P, patches + theirs] go through the blocks."""
    model, reference = backbone(), backbone()
    prompt = MetaPrompt(model, 3)
    prompt.start(torch.Generator().manual_seed(0))
    assert reference.cls_token is not None and reference.pos_embed is not None
    with torch.no_grad():
        patches = reference.patch_embed(IMAGES) + reference.pos_embed[:, 1:]
        first = (reference.cls_token + reference.pos_embed[:, :1]).expand(len(IMAGES), -1, -1)
        tokens = torch.cat([first, prompt.tokens.expand(len(IMAGES), -1, -1), patches], dim=1)
        expected = reference.norm(reference.blocks(tokens))[:, 0]
        torch.testing.assert_close(model(IMAGES), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"no_embed_class": True}, {"class_token": False, "global_pool": "avg"}])
def test_prompts_start_around_the_class_token_where_there_is_one(options: dict[str, Any]) -> None:
    model, reference = backbone(**options), backbone(**options)
    middle = torch.zeros(1, 1, 48) if reference.cls_token is None else reference.cls_token.detach()
    if reference.cls_token is not None and not reference.no_embed_class:
        assert reference.pos_embed is not None
        middle = middle + reference.pos_embed[:, :1].detach()
    prompt = MetaPrompt(model, 50)
    prompt.start(torch.Generator().manual_seed(0))
    away = prompt.tokens.detach() - middle
    assert away.std().item() == pytest.approx(0.02, rel=0.1)
    assert away.mean().item() == pytest.approx(0, abs=0.002)


def test_no_prompts_leave_the_backbone_untouched() -> None:
    model = backbone()
    names = set(model.state_dict())
    assert MetaPrompt(model, 0).tokens.numel() == 0
    assert set(model.state_dict()) == names
    assert not model.no_embed_class and model.reg_token is None and model.num_prefix_tokens == 1


def test_backbone_with_registers_of_its_own_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.prompt_tokens: found 3, expected 0.*register tokens"):
        MetaPrompt(backbone(reg_tokens=4, no_embed_class=True), 3)
    MetaPrompt(backbone(reg_tokens=4, no_embed_class=True), 0)


def test_prompts_move_in_every_task_and_are_carried_on(sequences: Any) -> None:
    method = sequences.make("fmlora", rank=4, drs=False, prompt_tokens=3)
    last = None
    for number in range(1, 5):
        data = sequences.begin(method, number, n_tasks=4)
        start = method.prompt.tokens.detach().clone()
        assert last is None or torch.equal(start, last)
        sequences.train(method, data)
        last = method.prompt.tokens.detach().clone()
        assert ((last - start).abs() > 0).all(), f"every number of every prompt trains in task {number}"
        method.end_task(data)
        assert torch.equal(method.prompt.tokens, last)


def test_prompts_are_drawn_anew_for_another_seed_alone(sequences: Any) -> None:
    drawn = []
    for seed in (0, 0, 1):
        method = sequences.make("fmlora", rank=4, prompt_tokens=8)
        task = sequences.task(1)
        method.begin_task(task, sequences.data(task, seed=seed))
        drawn.append(method.prompt.tokens.detach().clone())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    away = drawn[0] - method.backbone.cls_token.detach()
    assert away.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("tasks", [1, 3])
def test_without_prompts_the_model_is_the_plain_vit(sequences: Any, tmp_path: Path, tasks: int) -> None:
    method = sequences.make("fmlora", rank=4, drs=False, prompt_tokens=0)
    sequences.learn(method, tasks)
    expected = plain(method, IMAGES, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(method(IMAGES), expected, atol=1e-6, rtol=0)
    assert "backbone.reg_token" not in sequences.trainable(method)


def test_before_training_the_model_without_prompts_is_the_backbone_itself(sequences: Any) -> None:
    """At task 1's start B = 0, so features are the pretrained ones, bit for bit."""
    method = sequences.make("fmlora", rank=4, prompt_tokens=0)
    untouched = sequences.make("frozen").backbone
    data = sequences.begin(method, 1)
    with torch.no_grad():
        assert torch.equal(method.features(data.images), untouched(data.images))


@pytest.mark.parametrize("tasks", [1, 3])
def test_adapted_model_is_a_timm_vit_with_register_tokens(sequences: Any, tmp_path: Path, tasks: int) -> None:
    method = sequences.make("fmlora", rank=4, drs=False, prompt_tokens=3)
    sequences.learn(method, tasks)
    expected = plain(method, IMAGES, tmp_path, reg_tokens=3, no_embed_class=True)
    with torch.no_grad(), method.merged():
        assert torch.equal(method(IMAGES), expected)
