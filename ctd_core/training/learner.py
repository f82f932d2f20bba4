"""A student with what a training's stages change: which parameters learn, and the optimizer."""

import torch
from torch.nn.parallel import DistributedDataParallel

from ctd_core.config.training import Train
from ctd_core.models.loading import has_fast_bfloat16
from ctd_core.models.logprob_model import LogprobModel
from ctd_core.training.optimizer import check_phases, freeze, make_optimizer, rate_fraction, set_rate
from ctd_core.training.workers import distribute, replicated, true_everywhere


class Learner:
    """A student on its worker's device, in the stage of the next step.

    student: itself. wrapped: what calculates it, on several workers DDP. optimizer: of the stage. autocast: in which
    type it calculates, None for that of its weights.

    Args:
        student: the student, unsharded; what of it is frozen stays frozen in every stage.
        options: the training's options.
        device: the worker's.
        steps_done: how many steps its checkpoint has; the stage is that of the last of them, whose optimizer the
            checkpoint holds.
    """

    wrapped: LogprobModel | DistributedDataParallel
    optimizer: torch.optim.AdamW

    def __init__(self, student: LogprobModel, options: Train, device: torch.device, steps_done: int) -> None:
        self.student, self._options = student, options
        is_asked = options.autocast == "fastest" or (options.autocast == "auto" and device.type == "cuda")
        is_narrow = is_asked and true_everywhere(has_fast_bfloat16(device), device)
        self.autocast = torch.bfloat16 if is_narrow else None
        self._learned = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
        self._following = options.phases
        check_phases(student.language_model, self._following)  # what the last cannot do is told before the first step
        while len(self._following) > 1 and steps_done > self._following[1].begin:
            self._following.pop(0)
        self._phase = self._following.pop(0)
        self._choose_learned()
        distribute(student, options, device, self.autocast)
        self._wrap()

    def begin_step(self, step: int) -> float:
        """Make ready for `step`, counted from 0, and return its learning rate.

        Where the embeddings alone learn, that is theirs.
        """
        if self._following and step == self._following[0].begin:
            self._phase = self._following.pop(0)
            self._choose_learned()
            del self.wrapped  # with its hooks
            self._wrap()
        self.optimizer.zero_grad(set_to_none=True)
        fraction = rate_fraction(step - self._phase.begin, self._phase.options)
        set_rate(self.optimizer, fraction)
        return float(self.optimizer.param_groups[0]["lr"])

    def _wrap(self) -> None:
        self.wrapped = replicated(self.student, self._options)
        self.optimizer = make_optimizer(self.student, self._phase.options)

    def _choose_learned(self) -> None:
        """Let the parameters that are learned at all learn, but for those that the stage freezes."""
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_(name in self._learned)
            parameter.grad = None  # of what is frozen now, it would count in the gradient's norm
        freeze(self.student.model, self._phase.options.freeze)
