"""A run's method as it was when its checkpoint was written."""

from pathlib import Path
from typing import Any

from torch import Tensor

from fmlora_dist.config import RunConfig
from fmlora_dist.data import RunData
from fmlora_dist.distributed import World
from fmlora_dist.engine import Precision
from fmlora_dist.errors import UserError
from fmlora_dist.method import Method
from fmlora_dist.protocol import describe
from fmlora_dist.record import Position, RunDirectory
from fmlora_dist.registry import get_method
from fmlora_dist.vit.backbone import Pretrained, load_backbone

__all__ = ["make_method", "part_of", "restore", "take_over"]


def restore(folder: Path, *, device: str = "auto") -> tuple[Method, RunData, Precision]:
    """The trained model of a complete run, with its data.

    Raises:
        UserError: the folder holds no run, or an unfinished one.
    """
    record = RunDirectory(folder)
    config = record.config()
    if not record.complete:
        raise UserError(f"{folder}: the run is not complete; finish it with --resume first")
    world = World(device, config.threads)
    data = RunData(config, world)
    pretrained, method = make_method(config, data, world)
    found = record.load_checkpoint()
    if found is None:
        raise UserError(f"{folder}: the run's checkpoint is missing; train it again")
    precision = Precision(config.train.precision, world)
    protocol = describe(config, data, pretrained, precision)["shared_hash"]
    position = take_over(method, found, protocol, folder)
    return method, data, Precision(position.precision or precision.name, world)


def make_method(config: RunConfig, data: RunData, world: World) -> tuple[Pretrained, Method]:
    """A run's backbone and its method, untrained, on the run's device.

    Raises:
        UserError: the backbone's weights, or the method's hyperparameters, do not fit.
    """
    backbone = config.backbone
    if not backbone.name and not backbone.weights:
        update = {"name": data.spec.backbone_name, "weights": str(data.spec.backbone_weights)}
        backbone = backbone.model_copy(update=update)
    pretrained = load_backbone(backbone, image_size=data.spec.image_size)
    data.normalise_as(pretrained.mean, pretrained.std)
    cls = get_method(config.method.name)
    assert config.train.lr is not None
    method = cls(config.method, pretrained.model, lr=config.train.lr)
    return pretrained, method.to(world.device).eval()


def take_over(method: Method, found: tuple[dict[str, Tensor], Any], protocol: str, folder: Path) -> Position:
    """Give the method what a checkpoint holds of it; gives the run's position.

    Raises:
        UserError: it is of another shared protocol, damaged, or of another version of the package.
    """
    tensors, facts = found
    try:
        position = Position(**facts)
        if position.protocol == protocol:
            method.load_state_dict(part_of(tensors, "method/"))
            tensors["reference"]
    except (TypeError, LookupError, ValueError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"checkpoint: that of {folder} is damaged, or of another version ({reason}); remove it to train anew"
        ) from error
    if position.protocol != protocol:
        raise UserError(
            f"checkpoint: {folder} was trained on other backbone weights or other data than are there now; restore "
            "them, or choose another --out"
        )
    return position


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin with ``prefix``, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
