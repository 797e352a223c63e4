"""F-LoRA: one pair of low-rank bases that all tasks share, and two small matrices a task (arXiv 2504.08823)."""

import math

import torch
from torch import Tensor, nn

from fmlora_dist.vit.low_rank import Adapter

__all__ = ["FactorizedAdapter"]


class FactorizedAdapter(Adapter):
    """The update of one projection,

        W_t = W₀ + B C_tᵀ Aᵀ,   C_t = Σ_{i≤t} M_i N_iᵀ,   A [d_in, r], B [d_out, r], M_i, N_i [r, r_i].

    The paper writes ΔW = A M Nᵀ Bᵀ, which acts on row vectors: Δy = x A M_t N_tᵀ Bᵀ. Task 1 learns A and B with
    M₁N₁ᵀ = I; ``freeze_bases`` makes them orthonormal and keeps the function in the core C₁. A later task learns M_t
    and N_t alone, 2·r·r_t numbers. The past is the one r×r core, whatever the number of tasks.
    """

    core: Tensor

    def __init__(self, d_in: int, d_out: int, rank: int):
        super().__init__(d_in, d_out)
        self.rank = rank
        self.a = nn.Parameter(torch.zeros(d_in, rank))
        self.b = nn.Parameter(torch.zeros(d_out, rank))
        self.m = nn.Parameter(torch.zeros(rank, 0))
        self.n = nn.Parameter(torch.zeros(rank, 0))
        self.register_buffer("core", torch.zeros(0, 0))
        self.prefix: int | None = None
        """While DRS looks at nested ranks: how many columns of M_t and N_t act; None for all."""

    @property
    def bases_frozen(self) -> bool:
        """Whether task 1 is over."""
        return self.core.numel() > 0

    def start_bases(self, generator: torch.Generator) -> None:
        """Before task 1: A of N(0, 1/d_in), so that x A has the size of x's entries, and B = 0."""
        drawn = torch.randn(self.d_in, self.rank, generator=generator) / math.sqrt(self.d_in)
        self.a.data = drawn.to(self.a.device)
        self.b.data = torch.zeros_like(self.b)

    @torch.no_grad()
    def freeze_bases(self) -> None:
        """After task 1: A = Q_A R_A, B = Q_B R_B; the bases become Q_A and Q_B, and C₁ = R_A R_Bᵀ."""
        q_a, r_a = torch.linalg.qr(self.a)
        q_b, r_b = torch.linalg.qr(self.b)
        self.a.data, self.b.data = q_a.contiguous(), q_b.contiguous()
        self.core = r_a @ r_b.T

    def start_factors(self, rank: int, generator: torch.Generator) -> None:
        """Before task t ≥ 2: M_t of N(0, 1/r) and N_t = 0, so that the task starts from the function it inherits."""
        drawn = torch.randn(self.rank, rank, generator=generator) / math.sqrt(self.rank)
        self.m.data = drawn.to(self.m.device)
        self.n.data = torch.zeros(self.rank, rank, device=self.n.device)

    @torch.no_grad()
    def absorb_factors(self) -> None:
        """After task t ≥ 2: C_t = C_{t-1} + M_t N_tᵀ."""
        self.core = self.core + self.m @ self.n.T
        self.m.data, self.n.data = self.m.data[:, :0].clone(), self.n.data[:, :0].clone()

    def factors(self) -> tuple[Tensor, Tensor] | None:
        if not self.bases_frozen:
            return self.a.T, self.b
        m, n = (self.m, self.n) if self.prefix is None else (self.m[:, : self.prefix], self.n[:, : self.prefix])
        if not m.shape[1]:
            return None
        return m.T @ self.a.T, self.b @ n

    def past(self) -> Tensor | None:
        return self.b.detach() @ self.core.T @ self.a.detach().T if self.bases_frozen else None
