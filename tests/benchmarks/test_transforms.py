"""Transforms against the public codes' pipelines: torchvision's first transforms, on PIL images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as pil
from torchvision.transforms import functional as F

from benchmarks.transforms import (
    Normalisation,
    Transform,
    Windows,
    brighten,
    draw_crops,
    normalise,
    resize_window,
    view,
)

HALF = Normalisation((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
SHAPES = [(400, 500), (500, 375), (224, 224), (32, 32), (90, 310), (300, 200)]  # height, width; CIFAR's among them
INTERPOLATIONS = ["bilinear", "bicubic"]
GREY_LEVELS = {"bilinear": 2, "bicubic": 3}  # torch's weights have 15 bits, Pillow's 22; bicubic overshoots at edges


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3] with edges, waves and noise: smooth enough to be a photograph, sharp enough to tell filters."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(2 * np.pi * (draw.uniform(1, 9) * x + draw.uniform(1, 9) * y)) for _ in range(3)]
    edges = ((np.floor(6 * x) + np.floor(5 * y)) % 2)[..., None]
    return (
        (128 + 50 * np.stack(waves, -1) + 60 * edges + draw.normal(0, 8, (height, width, 3))).clip(0, 255).astype("u1")
    )


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def sizes(height: int, width: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(n, height), np.full(n, width)


def crops_of(height, width, n, transform=None, seed=0, **options):
    return draw_crops(*sizes(height, width, n), transform or Transform(), np.random.default_rng(seed), **options)


# -- the same box gives the same pixels ----------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_crop_is_what_pil_makes_of_the_same_box(shape, interpolation):
    pixels = picture(*shape)
    crops = crops_of(*shape, 12, seed=1)
    mode = F.InterpolationMode(interpolation)
    for (top, left, height, width), mirrored in zip(crops.boxes.tolist(), crops.mirrored.tolist(), strict=True):
        theirs = F.resized_crop(Image.fromarray(pixels), top, left, height, width, [224, 224], mode)
        theirs = np.asarray(F.hflip(theirs) if mirrored else theirs).astype(int)
        window = np.ascontiguousarray(pixels[top : top + height, left : left + width])
        transform = Transform(interpolation=interpolation)
        ours = resize_window(tensor(window), 224, transform, (0.9, 0.1), mirrored).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(ours - theirs).max() <= GREY_LEVELS[interpolation]
        assert np.abs(ours - theirs).mean() < 0.3 and abs((ours - theirs).mean()) < 0.05


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_square_cut_after_the_resize_is_what_pil_makes_of_the_same_place(shape, interpolation):
    pixels, transform = picture(*shape), Transform(interpolation=interpolation, train_resize=300)
    resized = pil.Resize((300, 300), F.InterpolationMode(interpolation))(Image.fromarray(pixels))
    crops = crops_of(*shape, 8, transform, seed=1)
    assert crops.boxes.tolist() == [[0, 0, *shape]] * 8
    for place, mirrored in zip(crops.places.tolist(), crops.mirrored.tolist(), strict=True):
        top, left = (int(77 * part) for part in place)
        theirs = F.crop(resized, top, left, 224, 224)
        theirs = np.asarray(F.hflip(theirs) if mirrored else theirs).astype(int)
        ours = resize_window(tensor(pixels), 224, transform, place, mirrored).permute(1, 2, 0).numpy().astype(int)
        assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= GREY_LEVELS[interpolation]
        assert np.abs(ours - theirs).mean() < 0.3 and abs((ours - theirs).mean()) < 0.05


@pytest.mark.parametrize("resize", [None, 256, 300])
@pytest.mark.parametrize("keeps_aspect", [True, False])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_test_view_is_that_of_the_public_codes(shape, interpolation, keeps_aspect, resize):
    pixels, length = picture(*shape), resize or 224
    pipeline = pil.Compose(
        [
            pil.Resize(length if keeps_aspect else (length, length), F.InterpolationMode(interpolation)),
            pil.CenterCrop(224),
            pil.PILToTensor(),
        ]
    )
    transform = Transform(test_resize=resize, test_interpolation=interpolation, test_keeps_aspect=keeps_aspect)
    difference = (view(tensor(pixels), 224, transform).int() - pipeline(Image.fromarray(pixels)).int()).abs()
    assert difference.max() <= GREY_LEVELS[interpolation] and difference.float().mean() < 0.3


def test_an_image_of_the_right_size_is_only_normalised_in_a_test():
    pixels = picture(48, 48)
    assert torch.equal(view(tensor(pixels), 48, Transform()), tensor(pixels))


def test_normalise_is_to_tensor_and_normalize():
    pixels = picture(24, 24)
    theirs = pil.Compose([pil.ToTensor(), pil.Normalize(HALF.mean, HALF.std)])(Image.fromarray(pixels))
    torch.testing.assert_close(normalise(tensor(pixels)[None], HALF)[0], theirs)


@pytest.mark.parametrize("factor", [0.75, 1.0, 1.2])
def test_brightness_is_that_of_pil(factor):
    images = torch.stack([tensor(picture(40, 40)), tensor(picture(40, 40, seed=1))])
    ours = brighten(images, torch.tensor([factor, 1.0]))
    theirs = np.asarray(F.adjust_brightness(Image.fromarray(images[0].permute(1, 2, 0).numpy()), factor))
    assert (ours[0].int() - tensor(theirs.copy()).int()).abs().max() <= 1
    assert torch.equal(ours[1], images[1])


# -- the same distribution -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(400, 500), (500, 375), (32, 32), (90, 310)], ids=str)
@pytest.mark.parametrize(
    ("scale", "ratio"),
    [
        ((0.08, 1.0), (3 / 4, 4 / 3)),
        ((0.05, 1.0), (3 / 4, 4 / 3)),
        ((0.6, 1.0), (3 / 4, 4 / 3)),
        ((1.0, 1.0), (3 / 4, 4 / 3)),  # seldom fits in ten tries: the fallback
        ((0.9, 1.0), (0.4, 2.5)),
        ((0.9, 1.0), (1.4, 1.6)),
        ((0.9, 1.0), (0.5, 0.7)),
    ],
)
def test_boxes_are_distributed_as_torchvisions(shape, scale, ratio):
    n = 3000
    ours = crops_of(*shape, n, Transform(crop_scale=scale), ratio=ratio).boxes
    torch.manual_seed(0)
    image = torch.zeros(3, 1, 1).expand(3, *shape)
    theirs = np.array([pil.RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(n)])
    areas = np.stack((ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]))
    for mine, other in (*zip(ours.T, theirs.T, strict=True), areas):
        levels = np.union1d(mine, other)
        mine, other = np.sort(mine), np.sort(other)
        distance = np.abs(np.searchsorted(mine, levels, "right") - np.searchsorted(other, levels, "right")).max() / n
        assert distance < 2.2 * np.sqrt(2 / n)  # Kolmogorov-Smirnov at 0.01 %, since there are 140 of them


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", [(200, 250), (250, 180), (32, 32)], ids=str)
def test_pixel_means_of_many_crops_are_those_of_the_pil_pipeline(shape, interpolation):
    """A grid of 4 by 4 means over many draws, so that a crop that is shifted, mirrored or scaled otherwise shows."""
    n, size = 1500, 64
    pixels = picture(*shape)
    pixels[: shape[0] // 2] //= 2
    transform = Transform(interpolation=interpolation)
    pipeline = pil.Compose(
        [
            pil.RandomResizedCrop(size, interpolation=F.InterpolationMode(interpolation)),
            pil.RandomHorizontalFlip(),
            pil.ToTensor(),
        ]
    )
    crops = crops_of(*shape, n, transform, seed=3)
    windows = [np.ascontiguousarray(pixels[t : t + h, left : left + w]) for t, left, h, w in crops.boxes.tolist()]
    flat = torch.from_numpy(np.concatenate([window.reshape(-1) for window in windows]))
    ours = Windows(
        pixels=flat,
        shapes=tuple(window.shape[:2] for window in windows),
        places=tuple(map(tuple, crops.places.tolist())),
        mirrored=tuple(crops.mirrored.tolist()),
        size=size,
        transform=transform,
    ).to(torch.device("cpu"))
    torch.manual_seed(0)
    theirs = torch.stack([pipeline(Image.fromarray(pixels)) for _ in range(n)])
    coarse = [torch.nn.functional.avg_pool2d(images, size // 4) for images in (ours / 255, theirs)]
    spread = (coarse[0].var(0) / n + coarse[1].var(0) / n).sqrt()
    assert ((coarse[0].mean(0) - coarse[1].mean(0)).abs() < 1 / 255 + 4 * spread).all()
    assert (coarse[0].std(0) / coarse[1].std(0) - 1).abs().max() < 0.15


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixel_means_under_the_same_boxes_agree_within_one_255th(shape, interpolation):
    pixels, mode = picture(*shape), F.InterpolationMode(interpolation)
    transform = Transform(interpolation=interpolation)
    for top, left, height, width in crops_of(*shape, 20, seed=5).boxes.tolist():
        theirs = F.to_tensor(F.resized_crop(Image.fromarray(pixels), top, left, height, width, [224, 224], mode))
        window = tensor(np.ascontiguousarray(pixels[top : top + height, left : left + width]))
        crop = resize_window(window, 224, transform, (0.0, 0.0), False)
        ours = normalise(crop[None], Normalisation((0,) * 3, (1,) * 3))[0]
        assert (ours.mean((1, 2)) - theirs.mean((1, 2))).abs().max() < 1 / 255


# -- what is drawn -------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1.0), st.integers(1, 300), st.integers(1, 300))
def test_boxes_lie_inside_the_image_and_are_not_empty(seed, smallest, height, width):
    boxes = crops_of(height, width, 50, Transform(crop_scale=(smallest, 1.0)), seed).boxes
    top, left, tall, wide = boxes.T
    assert (boxes >= 0).all() and (tall > 0).all() and (wide > 0).all()
    assert (top + tall <= height).all() and (left + wide <= width).all()


def test_squares_are_cut_at_each_place_equally_often_as_torchvisions():
    """RandomCrop's places of 224 in 300 are 0 to 76, down and across, each as likely."""
    places = crops_of(90, 310, 20_000, Transform(train_resize=300)).places
    assert places.shape == (20_000, 2) and abs(np.corrcoef(places.T)[0, 1]) < 0.03
    counts = [np.bincount((77 * part).astype(int), minlength=77) for part in places.T]
    for count in counts:
        assert len(count) == 77
        assert ((count - 20_000 / 77) ** 2 / (20_000 / 77)).sum() < 76 + 6 * (2 * 76) ** 0.5


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=9))
def test_each_image_draws_within_its_own_size(seed, shapes):
    heights, widths = np.array(shapes).T
    crops = draw_crops(heights, widths, Transform(), np.random.default_rng(seed))
    assert (crops.boxes[:, 0] + crops.boxes[:, 2] <= heights).all()
    assert (crops.boxes[:, 1] + crops.boxes[:, 3] <= widths).all()
    part = crops[1:3]
    assert np.array_equal(part.boxes, crops.boxes[1:3]) and len(part.mirrored) == len(part.brightness)


def test_half_of_the_images_are_mirrored_and_none_without_flip():
    assert abs(crops_of(48, 48, 4000).mirrored.mean() - 0.5) < 0.03
    without = crops_of(48, 48, 100, Transform(flip=False))
    assert not without.mirrored.any()
    assert np.array_equal(without.boxes, crops_of(48, 48, 100).boxes)


def test_brightness_is_drawn_evenly_around_one():
    drawn = crops_of(48, 48, 4000, Transform(brightness=63 / 255)).brightness
    assert drawn.min() >= 1 - 63 / 255 - 1e-6 and drawn.max() <= 1 + 63 / 255 + 1e-6
    assert abs(drawn.mean() - 1) < 0.01 and abs(drawn.std() - 63 / 255 / np.sqrt(3)) < 0.01
    assert (crops_of(48, 48, 9).brightness == 1).all()
