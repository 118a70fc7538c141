"""Cross-entropy to subclass targets, for this package's student and other trainers."""

import torch
from torch import Tensor, nn

__all__ = ["SubclassCrossEntropyLoss", "class_logits", "subclass_cross_entropy"]


def class_logits(logits: Tensor, n_classes: int, *, temperature: float = 1.0) -> Tensor:
    r"""Aggregate the logits of subclasses into the logits of their classes.

    .. math:: A_c = \tau \log \sum_s \exp(a_{c,s} / \tau)

    so that ``softmax(A)`` are the class probabilities that a student trained at
    temperature :math:`\tau` predicts. With one subclass per class they are `logits`.

    Parameters
    ----------
    logits : torch.Tensor of shape (n, n_classes * n_subclasses)
        Outputs of the student, subclass s of class c in column
        ``c * n_subclasses + s``.
    n_classes : int
        The number of classes C.
    temperature : float, default=1.0
        The temperature τ of training.

    Returns
    -------
    torch.Tensor of shape (n, n_classes)
        The class logits A.

    Raises
    ------
    ValueError
        If the number of columns is not a multiple of `n_classes`.

    Examples
    --------
    >>> import torch
    >>> from lelp_sklearn.losses import class_logits
    >>> class_logits(torch.tensor([[0.0, 0.0, -1.0, 1.0]]), 2)
    tensor([[0.6931, 1.1269]])
    """
    _check_logits(logits, n_classes)
    if logits.shape[1] == n_classes:
        return logits
    by_class = logits.unflatten(1, (n_classes, -1))
    return temperature * torch.logsumexp(by_class / temperature, dim=2)


def subclass_cross_entropy(
    logits: Tensor,
    soft_targets: Tensor,
    n_classes: int,
    *,
    temperature: float = 1.0,
    subclass_weight: float = 1.0,
    within_class_temperature: float | None = None,
) -> Tensor:
    r"""Compute the cross-entropy between subclass targets and logits, row by row.

    .. math::

        L = \tau^2 \, \mathrm{CE}_{class}(\tau)
            + \lambda \, \tau_w^2 \sum_c p_c \, \mathrm{CE}_{within\ c}(\tau_w)

    with the class targets :math:`p_c = \sum_s p_{c,s}`.
    :math:`\mathrm{CE}_{class}(\tau)` is the cross-entropy between these and
    :math:`\mathrm{softmax}_c(\log \sum_s \exp(a_{c,s} / \tau))`, and
    :math:`\mathrm{CE}_{within\ c}(\tau_w)` that between :math:`p_{c,s} / p_c` and
    :math:`\mathrm{softmax}_s(a_{c,s} / \tau_w)`. With :math:`\tau_w = \tau`,
    :math:`\lambda = 1` is the cross-entropy over all subclasses (LELP as published
    [1]_, times :math:`\tau^2`) and :math:`\lambda = 0` is vanilla knowledge
    distillation on summed outputs.

    Parameters
    ----------
    logits : torch.Tensor of shape (n, n_classes * n_subclasses)
        Outputs of the student, subclass s of class c in column
        ``c * n_subclasses + s``.
    soft_targets : torch.Tensor of shape (n, n_classes * n_subclasses)
        Target probabilities in the same order. No gradient flows to them.
    n_classes : int
        The number of classes C.
    temperature : float, default=1.0
        The temperature τ with which the class targets were made.
    subclass_weight : float, default=1.0
        The weight λ of the subclasses within their class.
    within_class_temperature : float, default=None
        The temperature τ_w within the classes; None is `temperature`.
        `LELPStudentClassifier` takes a lower one if the teacher is unsure, and 1 or
        less if each class has all its mass on one subclass.

    Returns
    -------
    torch.Tensor of shape (n,)
        The loss of each row.

    Raises
    ------
    ValueError
        If the shapes differ, the number of columns is not a multiple of `n_classes`, a
        temperature is not positive or the weight is negative.

    References
    ----------
    .. [1] Loo, Iliopoulos, Hu and Vee, "Linear Projections of Teacher Embeddings for
       Few-Class Distillation", 2024, arXiv:2409.20449.

    Examples
    --------
    >>> import torch
    >>> from lelp_sklearn.losses import subclass_cross_entropy
    >>> targets = torch.tensor([[0.5, 0.0, 0.25, 0.25]])
    >>> logits = torch.zeros(1, 4)
    >>> subclass_cross_entropy(logits, targets, 2)
    tensor([1.3863])
    >>> subclass_cross_entropy(logits, targets, 2, subclass_weight=0.0)
    tensor([0.6931])
    """
    _check_parameters(temperature, subclass_weight, within_class_temperature)
    _check_logits(logits, n_classes)
    if soft_targets.shape != logits.shape:
        raise ValueError(
            f"soft_targets has shape {tuple(soft_targets.shape)} and logits has "
            f"{tuple(logits.shape)}: they must be equal."
        )
    dtype = torch.promote_types(logits.dtype, soft_targets.dtype)
    by_class = logits.to(dtype).unflatten(1, (n_classes, -1))
    within_class_temperature = within_class_temperature or temperature
    return _subclass_losses(
        torch.logsumexp(by_class / temperature, dim=2),
        by_class / within_class_temperature,
        soft_targets.detach().to(dtype).unflatten(1, (n_classes, -1)),
        temperature=temperature,
        subclass_weight=subclass_weight,
        within_class_temperature=within_class_temperature,
    )


class SubclassCrossEntropyLoss(nn.Module):
    """Criterion that computes :func:`subclass_cross_entropy` of a batch.

    Parameters
    ----------
    n_classes : int
        The number of classes C.
    temperature : float, default=1.0
        As in :func:`subclass_cross_entropy`.
    subclass_weight : float, default=1.0
        As there. It may be changed between the steps of training:
        ``max(0.0, 1 - 2 * progress)``, with the progress of training from 0 to 1, is
        the default of `LELPStudentClassifier`.
    within_class_temperature : float, default=None
        As in :func:`subclass_cross_entropy`.
    reduction : {"mean", "sum", "none"}, default="mean"
        How the losses of the rows are reduced.

    Raises
    ------
    ValueError
        If a temperature is not positive, the weight is negative or `reduction` is
        unknown; at the call, if the shapes do not fit.

    Examples
    --------
    >>> import torch
    >>> from lelp_sklearn.losses import SubclassCrossEntropyLoss
    >>> criterion = SubclassCrossEntropyLoss(n_classes=2, temperature=2.0)
    >>> criterion(torch.zeros(3, 4), torch.full((3, 4), 0.25))
    tensor(5.5452)
    """

    def __init__(
        self,
        n_classes: int,
        *,
        temperature: float = 1.0,
        subclass_weight: float = 1.0,
        within_class_temperature: float | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check_parameters(temperature, subclass_weight, within_class_temperature)
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(
                f"reduction={reduction!r} must be one of 'mean', 'sum' and 'none'."
            )
        self.n_classes = n_classes
        self.temperature = temperature
        self.subclass_weight = subclass_weight
        self.within_class_temperature = within_class_temperature
        self.reduction = reduction

    def forward(self, logits: Tensor, soft_targets: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Parameters
        ----------
        logits : torch.Tensor of shape (n, n_classes * n_subclasses)
            Outputs of the student.
        soft_targets : torch.Tensor of shape (n, n_classes * n_subclasses)
            Target probabilities.

        Returns
        -------
        torch.Tensor
            A scalar, or of shape (n,) if `reduction` is "none".
        """
        rows = subclass_cross_entropy(
            logits,
            soft_targets,
            self.n_classes,
            temperature=self.temperature,
            subclass_weight=self.subclass_weight,
            within_class_temperature=self.within_class_temperature,
        )
        if self.reduction == "none":
            return rows
        return rows.sum() if self.reduction == "sum" else rows.mean()


def _subclass_losses(
    class_logits: Tensor,
    within_logits: Tensor,
    soft_targets: Tensor,
    *,
    temperature: float | Tensor,
    subclass_weight: float | Tensor,
    within_class_temperature: float | Tensor,
) -> Tensor:
    """Compute `subclass_cross_entropy` without checks, of logits over temperatures.

    The class logits are (n, C), all else is (n, C, S); students that are stacked are a
    first axis, and their rows the last. A `subclass_weight` that is a tensor is never
    read on the host.
    """
    losses = _soft_cross_entropy(class_logits, soft_targets.sum(dim=2))
    losses = losses * temperature**2
    has_weight = isinstance(subclass_weight, Tensor) or bool(subclass_weight)
    # A single subclass is the whole class: nothing is left to learn within it.
    if not has_weight or within_logits.shape[2] == 1:
        return losses
    log_within = torch.log_softmax(within_logits, dim=2)
    # An impossible subclass that is no target is 0 times infinity, and adds nothing.
    # Logits that are NaN show in the class part.
    inner = (soft_targets * log_within).nansum(dim=(1, 2))
    return losses - inner * (subclass_weight * within_class_temperature**2)


def _soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross-entropy between targets and logits, whose second axis is C."""
    return -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1)


def _check_logits(logits: Tensor, n_classes: int) -> None:
    if logits.ndim != 2 or n_classes < 1 or logits.shape[1] % n_classes:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)} and n_classes={n_classes}: logits "
            "must be (n_samples, n_classes * n_subclasses)."
        )


def _check_parameters(
    temperature: float, subclass_weight: float, within_class_temperature: float | None
) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r} must be positive.")
    if within_class_temperature is not None and not within_class_temperature > 0:
        raise ValueError(
            f"within_class_temperature={within_class_temperature!r} must be positive, "
            "or None for temperature itself."
        )
    if not subclass_weight >= 0:
        raise ValueError(f"subclass_weight={subclass_weight!r} must not be negative.")
