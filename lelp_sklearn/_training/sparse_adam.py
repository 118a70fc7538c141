"""Adam that updates the rows of a weight that a batch touches, and no others."""

from typing import Any

import torch
from torch import Tensor, nn


class SparseAdamW(torch.optim.AdamW):
    r"""AdamW; of a weight whose gradient is sparse it updates the touched rows only.

    Such a weight has no first moment (:math:`\beta_1 = 0`). Then a step without a
    gradient only decays the second moment and the weights of a row. What a row has
    missed is made up when it is next touched: after k steps its second moment is
    multiplied by :math:`\beta_2^k`, and its weights by
    :math:`(1 - \eta \cdot decay)^k` at the learning rate of now.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the touched rows, then all weights whose gradient is dense."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and weight.grad.is_sparse:
                    self._update_rows(weight, weight.grad.coalesce(), group)
                    # AdamW skips weights without a gradient.
                    weight.grad = None
        return super().step(closure)

    def _update_rows(
        self, weight: nn.Parameter, gradient: Tensor, group: dict[str, Any]
    ) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg_sq"] = torch.zeros_like(weight)
            # The step in which a row was touched last.
            state["row_step"] = weight.new_zeros(len(weight))
        state["step"] += 1
        step, rate, beta2 = float(state["step"]), group["lr"], group["betas"][1]
        index, gradients = gradient.indices()[0], gradient.values()
        n_steps = (step - state["row_step"].index_select(0, index)).unsqueeze(1)
        state["row_step"].index_fill_(0, index, step)

        moments = state["exp_avg_sq"].index_select(0, index).mul_(beta2**n_steps)
        moments.addcmul_(gradients, gradients, value=1 - beta2)
        state["exp_avg_sq"].index_copy_(0, index, moments)

        scale = moments.div_(1 - beta2**step).sqrt_().add_(group["eps"])
        rows = weight.index_select(0, index)
        rows.mul_((1 - rate * group["weight_decay"]) ** n_steps)
        weight.index_copy_(0, index, rows.addcdiv_(gradients, scale, value=-rate))
