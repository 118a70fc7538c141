"""Cross-entropy to subclass targets, for this package's student and other trainers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lelp_sklearn import _training_validation as validation
from lelp_sklearn._training import objective

__all__ = ["SubclassCrossEntropyLoss", "class_logits", "subclass_cross_entropy"]


def class_logits(logits: Tensor, n_classes: int, *, temperature: float = 1.0) -> Tensor:
    r"""Fold the logits of subclasses into the logits of their classes.

    .. math:: A_c = \tau \log \sum_s \exp(a_{c,s} / \tau)

    so that ``softmax(A)`` are the class probabilities that a student trained at
    temperature :math:`\tau` predicts. With one subclass per class `logits` come back.

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
        If the number of columns is no multiple of `n_classes`.

    Examples
    --------
    >>> import torch
    >>> from lelp_sklearn.losses import class_logits
    >>> class_logits(torch.tensor([[0.0, 0.0, -1.0, 1.0]]), 2)
    tensor([[0.6931, 1.1269]])
    """
    validation.check_loss_shapes(logits.shape, None, n_classes)
    if logits.shape[1] == n_classes:
        return logits
    shape = len(logits), n_classes, logits.shape[1] // n_classes
    return temperature * torch.logsumexp(logits.reshape(shape) / temperature, dim=2)


def subclass_cross_entropy(
    logits: Tensor,
    soft_targets: Tensor,
    n_classes: int,
    *,
    temperature: float = 1.0,
    subclass_weight: float = 1.0,
    within_class_temperature: float | None = None,
) -> Tensor:
    r"""Cross-entropy between subclass targets and logits, row by row.

    .. math::

        L = \tau^2 \, \mathrm{CE}_{class}(\tau)
            + \lambda \, \tau_w^2 \sum_c p_c \, \mathrm{CE}_{within\ c}(\tau_w)

    with :math:`p_c = \sum_s p_{c,s}` the class targets. With
    :math:`\tau_w = \tau`, :math:`\lambda = 1` is the cross-entropy over all
    subclasses (LELP as published, times :math:`\tau^2`) and :math:`\lambda = 0`
    is vanilla knowledge distillation on summed outputs.

    Parameters
    ----------
    logits : torch.Tensor of shape (n, n_classes * n_subclasses)
        Outputs of the student, subclass s of class c in column
        ``c * n_subclasses + s``.
    soft_targets : torch.Tensor of shape (n, n_classes * n_subclasses)
        Target probabilities in the same order. They are constants: no gradient
        reaches them.
    n_classes : int
        The number of classes C.
    temperature : float, default=1.0
        The temperature τ with which the class targets were made.
    subclass_weight : float, default=1.0
        The weight λ of the subclasses within their class.
    within_class_temperature : float, default=None
        The temperature τ_w within the classes; None is `temperature`.

    Returns
    -------
    torch.Tensor of shape (n,)
        The loss of each row, differentiable once with respect to `logits`.

    Raises
    ------
    ValueError
        If the shapes differ, the number of columns is no multiple of `n_classes`, a
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
    validation.check_loss_arguments(
        temperature, subclass_weight, within_class_temperature
    )
    validation.check_loss_shapes(logits.shape, soft_targets.shape, n_classes)
    dtype = torch.promote_types(logits.dtype, soft_targets.dtype)
    # torch has no types for what a Function's `apply` takes.
    rows: Tensor = _SubclassCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits.to(dtype),
        soft_targets.to(dtype),
        n_classes,
        temperature,
        subclass_weight,
        temperature if within_class_temperature is None else within_class_temperature,
    )
    return rows


class SubclassCrossEntropyLoss(nn.Module):
    """`subclass_cross_entropy` as a module, for trainers that want a criterion.

    Parameters
    ----------
    n_classes : int
        The number of classes C.
    temperature : float, default=1.0
        The temperature τ with which the class targets were made.
    subclass_weight : float, default=1.0
        The weight λ of the subclasses within their class. It may be changed between
        the steps of training: ``max(0.0, 1 - 2 * progress)``, with the progress of
        training from 0 to 1, is the default of `LELPStudentClassifier`.
    within_class_temperature : float, default=None
        The temperature within the classes; None is `temperature`.
    reduction : {"mean", "sum", "none"}, default="mean"
        What to do with the losses of the rows.

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
        validation.check_loss_arguments(
            temperature, subclass_weight, within_class_temperature, reduction
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
            A scalar, or of shape (n,) where `reduction` is "none".
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


class _SubclassCrossEntropy(torch.autograd.Function):
    """The losses of the rows, with the gradient that comes with them."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        soft_targets: Tensor,
        n_classes: int,
        temperature: float,
        subclass_weight: float,
        within_class_temperature: float,
    ) -> Tensor:
        losses, gradient = objective.loss_and_gradient(
            logits,
            soft_targets,
            n_classes,
            temperature=temperature,
            subclass_weight=subclass_weight,
            within_class_temperature=within_class_temperature,
        )
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, row_gradient: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * row_gradient.unsqueeze(1), None, None, None, None, None
