"""PyTorch's post-local SGD: dense steps first, then local ones, and averages of the weights."""

from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.model_averaging.utils import (
    average_parameters_or_parameter_groups,
)
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer


class PostLocalSGD:
    """Averages weights after every so many steps of an optimizer, and after the last.

    PyTorch's ``PostLocalSGDOptimizer`` would do so after the first local step of every period, and
    leave ranks with different weights at the end.

    Args:
        optimizer: whose steps are counted.
        model: whose gradients are averaged in the first steps.
        period: local steps before each average.
        dense_steps: with averaged gradients, at the start.
        steps: of the whole training.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: DistributedDataParallel,
        period: int,
        dense_steps: int,
        steps: int,
    ) -> None:
        self.group = model.process_group
        self.period = period
        self.dense_steps = dense_steps
        self.steps = steps
        self.step = 0
        self.all_reduces = 0  # of all gradients, or of all weights
        # By default ranks of one machine would still average their gradients in every step.
        state = PostLocalSGDState(None, None, dense_steps, post_local_gradient_allreduce=False)
        model.register_comm_hook(state, post_localSGD_hook)
        optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        self.step += 1
        local = self.step - self.dense_steps
        due = local > 0 and (local % self.period == 0 or self.step == self.steps)
        if due:
            average_parameters_or_parameter_groups(optimizer.param_groups, self.group)
        self.all_reduces += due or local <= 0
