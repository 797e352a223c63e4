"""The subspace of a layer's inputs that earlier tasks have used: gradient projection memory and its dual."""

import torch
from torch import Tensor, nn

__all__ = ["SubspaceMemory"]


class SubspaceMemory(nn.Module):
    """An orthonormal basis of the used subspace S of ℝᵈ, or of what is left of ℝᵈ, whichever is smaller.

    Saha et al., Gradient Projection Memory, ICLR 2021, eq. 5-9; the dual form of Liang and Li, Adaptive Plasticity
    Improvement for Continual Learning, CVPR 2023. Either way the same S is remembered. Everything is computed in
    float64 on the CPU, alike in all processes; the stored basis is float32.
    """

    basis: Tensor
    retains: Tensor

    def __init__(self, width: int, *, dual: bool):
        """``dual``: store the free complement instead of S once S has more than half of the dimensions."""
        super().__init__()
        self.width, self.dual = width, dual
        self.register_buffer("basis", torch.empty(width, 0))
        # False, "remove": the basis spans S. True, "retain": it spans the complement of S.
        self.register_buffer("retains", torch.tensor(False))

    @property
    def n_free(self) -> int:
        """Dimensions that no task has used so far."""
        stored = self.basis.shape[1]
        return stored if self.retains else self.width - stored

    def free(self) -> Tensor:
        """Orthonormal basis [d, n_free] of the complement of S, float64 on the CPU."""
        basis = self.basis.cpu().double()
        if self.retains:
            return basis
        complete: Tensor = torch.linalg.qr(basis, mode="complete").Q
        return complete[:, basis.shape[1] :]

    def directions(self, moment: Tensor, rank: int) -> Tensor:
        """Up to ``rank`` leading left singular vectors of (I - P) M, as rows [min(rank, n_free), d], float32.

        P projects on S, M [d, d] is the second moment of the layer's input. They are computed in coordinates of the
        complement, so they are orthogonal to S even where (I - P) M has a smaller rank than was asked for.
        """
        free = self.free()
        left = torch.linalg.svd(free.T @ moment.cpu().double()).U[:, :rank]
        rows = (free @ left).T
        # A singular vector's sign is the library's whim; fixed, so that all machines choose the same factors.
        largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
        signed: Tensor = rows * largest.sign()
        return signed.float()

    def extend(self, moment: Tensor, threshold: float) -> None:
        """Add leading directions of (I - P) M to S until S holds the share ``threshold`` of the energy of M.

        Energy is the sum of squared singular values of M (InfLoRA's official code), thus fourth powers of the
        activations' singular values. The first task takes one direction fewer than reaches the threshold, but at
        least one, as that code does.
        """
        device = self.basis.device
        moment = moment.cpu().double()
        first = self.n_free == self.width
        free = self.free()
        left, values, _ = torch.linalg.svd(free.T @ moment)
        energy = values.square() / moment.square().sum().clamp_min(torch.finfo(moment.dtype).tiny)
        held = 1 - energy.sum()
        reached = torch.cat([held[None], held + energy.cumsum(0)])
        count = min(int((reached < threshold).sum()), free.shape[1])
        if first:
            count = max(count - 1, 1)
        added, left_over = free @ left[:, :count], free @ left[:, count:]
        used = self.width - left_over.shape[1]
        if self.retains or (self.dual and 2 * used > self.width):
            self.retains = torch.tensor(True, device=device)
            self.basis = left_over.float().to(device)
        else:
            self.basis = torch.cat([self.basis, added.float().to(device)], dim=1)
