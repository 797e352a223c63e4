"""Class means of the frozen backbone's features: what is had without any training."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fmlora_dist.method import Method, MethodConfig, MethodInfo, ParameterGroup, Task, TaskData
from fmlora_dist.registry import register_method
from fmlora_dist.vit.backbone import Backbone

__all__ = ["SimpleCil"]


@register_method(
    MethodInfo(
        name="simplecil",
        summary="class means of the frozen features, by cosine; nothing trains",
        paper="Zhou et al., Revisiting Class-Incremental Learning with Pre-Trained Models, IJCV 2024 (SimpleCIL)",
        family="head",
        needs_pass=True,
    )
)
class SimpleCil(Method):
    """A test image goes to the class c whose mean feature points its way: argmax_c cos(f, μ_c).

    The head's rows are the μ_c / ‖μ_c‖, so that the logits are ‖f‖ cos(f, μ_c): the same order, by a plain linear head.
    Means are over the images under the test transform, as in PILOT. With a shared head they run over all domains so
    far, each image counting alike; the sums of the rows that may still change are what is stored beside the head.
    """

    sums: Tensor

    def __init__(self, config: MethodConfig, backbone: Backbone, *, lr: float):
        super().__init__(config, backbone, lr=lr)
        # In float64: the same to the last digits that count, however the images were shared among processes.
        self.register_buffer("sums", torch.empty(0, backbone.num_features, dtype=torch.float64))

    def begin_task(self, task: Task, data: TaskData) -> None:
        super().begin_task(task, data)
        if task.number == 1 or not task.shared_head:
            self.sums = self.sums.new_zeros(self.head.weight.shape)

    def parameter_groups(self) -> list[ParameterGroup]:
        return []

    @torch.no_grad()
    def end_task(self, data: TaskData) -> None:
        sums = torch.zeros_like(self.sums)
        for images, labels in data.batches(augment=False):
            with data.autocast():
                features = self.features(images)
            one_hot = F.one_hot(labels - self.head.start, len(sums)).to(sums.dtype)
            sums += one_hot.T @ features.to(sums.dtype)
        self.sums = self.sums + data.sum(sums)  # a mean's length does not change a cosine, so sums serve as means
        self.head.weight.data = F.normalize(self.sums).float()
        self.head.bias.data = torch.zeros_like(self.head.bias)
