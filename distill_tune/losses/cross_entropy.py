"""Cross-entropy against the data's own tokens."""

import torch


class CrossEntropy:
    """-log p_student(target), and its gradient for the student's logits, p_student - onehot(target)."""

    def __call__(self, log_probs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            log_probs: the student's log-probabilities ``[n, v]``, float32.
            targets: token ids ``[n]``, int64.

        Returns:
            The loss of each token ``[n]`` and the gradient of their sum for the logits ``[n, v]``.
        """
        values = -log_probs.gather(1, targets[:, None]).squeeze(1)
        gradient = log_probs.exp()
        gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -1.0))
        return values, gradient
