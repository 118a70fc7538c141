"""The loss on subclass targets with its gradient in closed form.

On the small arrays of few-class problems autograd would need more time for the loss
than for a student's first layer.
"""

import torch
from torch import Tensor


def loss_and_gradient(
    logits: Tensor,
    soft_targets: Tensor,
    n_classes: int,
    *,
    temperature: float,
    subclass_weight: float | Tensor,
    within_class_temperature: float,
    label_targets: Tensor | None = None,
    label_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""Give the loss of each row and its gradient with respect to the logits.

    With the class logits :math:`A = \tau B`, the student's class probabilities
    :math:`\pi` at τ, its softmax within the classes r at τ and r' at τ_w, and the class
    targets :math:`p_c`, the gradient with respect to :math:`a_{c,s}` of

    - :math:`\tau^2 \mathrm{CE}_{class}` is
      :math:`\tau (\pi_c \sum p - p_c) r_{s|c}`,
    - :math:`\tau_w^2 \sum_c p_c \mathrm{CE}_{within\ c}` is
      :math:`\tau_w (p_c r'_{s|c} - p_{c,s})`,
    - :math:`\mathrm{CE}(y, \mathrm{softmax}(A))` is
      :math:`(\mathrm{softmax}_c(A) - y_c) r_{s|c}`.

    Parameters
    ----------
    logits : Tensor of shape (n, n_classes * n_subclasses)
        Outputs of the student; nothing is recorded for autograd.
    soft_targets : Tensor of shape (n, n_classes * n_subclasses)
        Subclass targets.
    n_classes : int
        Number of classes.
    temperature, within_class_temperature : float
        The temperatures τ and τ_w.
    subclass_weight : float or Tensor of shape ()
        The weight λ of the second term; a tensor is not asked whether it is zero.
    label_targets : Tensor of shape (n, n_classes) or None
        One-hot labels y, zero where there is no label.
    label_weight : float
        The weight α of the third term; the first two have 1 - α.

    Returns
    -------
    losses : Tensor of shape (n,)
        The losses of the rows.
    gradient : Tensor of shape (n, n_classes * n_subclasses)
        Their gradients.
    """
    shape = len(logits), n_classes, logits.shape[1] // n_classes
    targets = soft_targets.reshape(shape)
    scaled = logits.detach().reshape(shape) / temperature
    log_within = torch.log_softmax(scaled, dim=2)
    # A log-softmax differs from its logits by their logsumexp: here at the largest,
    # since others may be infinite.
    folded = scaled.amax(dim=2) - log_within.amax(dim=2)
    class_targets = targets.sum(dim=2)
    share = 1.0 - label_weight
    losses, error = _cross_entropy(folded, class_targets)
    losses.mul_(share * temperature**2)
    error.mul_(share * temperature)
    if label_targets is not None:
        on_labels, label_error = _cross_entropy(folded * temperature, label_targets)
        losses.add_(on_labels, alpha=label_weight)
        error.add_(label_error, alpha=label_weight)
    weight = subclass_weight
    scale = share * within_class_temperature
    counts = isinstance(weight, Tensor) or bool(weight * scale)
    # One subclass is the whole class, and nothing is left to learn within it.
    if not counts or shape[2] == 1:
        return losses, _within(log_within, error).view(logits.shape)
    if within_class_temperature == temperature:
        _add(losses, _dot(targets, log_within), weight, -scale * temperature)
        _add(error, class_targets, weight, scale)
        gradient = _within(log_within, error)
    else:
        log_inner = torch.log_softmax(
            scaled * (temperature / within_class_temperature), dim=2
        )
        factor = -scale * within_class_temperature
        _add(losses, _dot(targets, log_inner), weight, factor)
        gradient = _within(log_within, error)
        _add(gradient, _within(log_inner, class_targets), weight, scale)
    return losses, _add(gradient, targets, weight, -scale).view(logits.shape)


def _add(total: Tensor, term: Tensor, weight: float | Tensor, scale: float) -> Tensor:
    """Add a term, times its weight and the scale, in place."""
    if isinstance(weight, Tensor):
        return total.addcmul_(term, weight, value=scale)
    return total.add_(term, alpha=weight * scale)


def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Give the cross-entropies of the rows of (n, C) and their gradients."""
    log_probabilities = torch.log_softmax(logits, dim=1)
    losses = (targets * log_probabilities).sum(dim=1).neg_()
    mass = targets.sum(dim=1, keepdim=True)
    return losses, log_probabilities.exp_().mul_(mass).sub_(targets)


def _within(log_probabilities: Tensor, by_class: Tensor) -> Tensor:
    """Spread what each class has over its subclasses, in place."""
    return log_probabilities.exp_().mul_(by_class.unsqueeze(2))


def _dot(targets: Tensor, log_probabilities: Tensor) -> Tensor:
    # A subclass that is impossible and no target adds nothing. Logits that are no
    # numbers show in the class part.
    return (targets * log_probabilities).nansum(dim=(1, 2))
