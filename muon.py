"""Muon: momentum whose updates of weight matrices are made orthogonal by Newton-Schulz iterations.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks",
https://kellerjordan.github.io/posts/muon. The update rule, its defaults and its state are those of
torch.optim.Muon. Two things differ, and neither changes what is computed beyond rounding: matrices
of one shape go through the iteration together, and the iteration runs in bfloat16 only on devices
that compute in it.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from devices import use_bfloat16


def orthogonalised(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """U V^T of each matrix U S V^T, nearly: its singular values come to lie between about 0.7 and
    1.2.

    Arguments:
        matrices: (N, m, n), float32
        coefficients: a, b, c of the iteration X <- a X + (b X X^T + c (X X^T)^2) X
        steps: iterations
        eps: smallest norm that a matrix is divided by

    Returns (N, m, n) in the precision that the iteration ran in.
    """
    a, b, c = coefficients
    precision = torch.bfloat16 if use_bfloat16("auto", matrices.device) else torch.float32
    x = matrices.to(precision)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Muon):
    """torch.optim.Muon, with the matrices of one shape updated together.

    Attributes:
        found_inf: None, or a 0-dim float32 tensor: where it is 1 rather than 0, a step changes
            nothing. Fused optimizers of torch have it too, for GradScaler
    """

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every matrix that has a gradient. A `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                self._update(group, shape, parameters)

    def _update(self, group: dict, shape: torch.Size, parameters: list[Tensor]) -> None:
        """Update matrices of one shape."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        lr = group["lr"]
        decay: float | Tensor = 1 - lr * group["weight_decay"]
        if self.found_inf is not None:
            kept = self.found_inf == 0
            # A step from a buffer to itself leaves it as it is.
            grads = [torch.where(kept, grad, buffer) for grad, buffer in zip(grads, buffers)]
            decay = torch.where(kept, decay, 1.0)
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        if group["nesterov"]:
            directions = torch.stack(torch._foreach_lerp(grads, buffers, group["momentum"]))
        else:
            directions = torch.stack(buffers)
        updates = orthogonalised(
            directions, group["ns_coefficients"], group["ns_steps"], group["eps"]
        ).to(parameters[0].dtype)
        if self.found_inf is not None:
            updates = torch.where(kept, updates, 0.0)
        torch._foreach_mul_(parameters, decay)
        torch._foreach_add_(
            parameters, updates.unbind(), alpha=-lr * max(1, shape[0] / shape[1]) ** 0.5
        )
