"""Cross-entropy against the data's own tokens."""

import torch

from distill_tune.losses.divergences import Distribution


class CrossEntropy:
    """-log p_student(target), and its gradient for the student's logits, p_student - onehot(target)."""

    def __call__(
        self, student: Distribution, targets: torch.Tensor, memory: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            student: its distribution, ``[n, v]``, float32; must not be overwritten.
            targets: token ids ``[n]``, int64.
            memory: what the gradient is written into, ``[n, v]``.

        Returns:
            The loss of each token ``[n]`` and the gradient of their sum for the logits ``[n, v]``.
        """
        values = -student.log_probs.gather(1, targets[:, None]).squeeze(1)
        gradient = memory.copy_(student.probs)
        gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -1.0))
        return values, gradient
